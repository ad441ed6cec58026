@POLICY
Feature: Retry Policy Ownership
  When a failed task is tried again is decided in one place, the queue's fail_task, from the policy that the queue was
  given. Workers report failures and compute nothing, so that all of them agree, whatever version they are.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @POLICY-1 @POLICY-2 @POLICY-3 @POLICY-4
  Scenario Outline: Queue computes retry delay
    Given a retry waits <base> at first, <factor> times longer after each further attempt, and at most <cap>
    When a caller enqueues fail("boom") with max_retries=4
    And a worker polls
    # POLICY-1, POLICY-3, POLICY-4
    Then the task has available_at=<first>
    # POLICY-3
    And failure 1 of the task has failed_at=12:00 and retry_at=<first>
    When it is 13:00
    And a worker polls
    # POLICY-2, POLICY-3
    Then the task has available_at=<second>
    # POLICY-4
    And the task is PENDING
    When it is 14:00
    And a worker polls
    # POLICY-2
    Then the task has available_at=<third>

    Examples: The delay doubles, trebles, stays the same, and never exceeds its cap
      | base           | factor | cap        | first        | second       | third        |
      | 1 second       | 2      | 1 hour     | 12:00:01     | 13:00:02     | 14:00:04     |
      | 5 minutes      | 3      | 1 hour     | 12:05        | 13:15        | 14:45        |
      | 10 seconds     | 1      | 10 seconds | 12:00:10     | 13:00:10     | 14:00:10     |
      | 4 seconds      | 2      | 6 seconds  | 12:00:04     | 13:00:06     | 14:00:06     |
      | 1 microsecond  | 2      | 1 hour     | 12:00:00.000001 | 13:00:00.000002 | 14:00:00.000004 |

  @POLICY-2
  Scenario: Without a policy of its own a queue waits a second, then two, then four
    When a caller enqueues fail("boom") with max_retries=4
    And a worker polls
    # POLICY-2
    Then the task has available_at=12:00:01
    When it is 12:00:01
    And a worker polls
    # POLICY-2
    Then the task has available_at=12:00:03
    When it is 12:00:03
    And a worker polls
    # POLICY-2
    Then the task has available_at=12:00:07

  @POLICY-1 @POLICY-5 @POLICY-6 @POLICY-7
  Scenario: Worker delegates to queue
    Given fail_task of the queue schedules every retry at 15:00
    When a caller enqueues fail("boom") with max_retries=2
    And a worker polls
    # POLICY-1, POLICY-5
    Then the worker has called fail_task 1 time
    # POLICY-6
    And the task has available_at=15:00
    # POLICY-7
    And the worker has logged "15:00:00"
    When it is 14:59:59.999999
    And a worker polls
    # POLICY-6
    Then fail("boom") has been executed 1 time
    When it is 15:00
    And a worker polls
    Then fail("boom") has been executed 2 times
    # POLICY-5
    And the worker has called fail_task 2 times

@LIFECYCLE
Feature: Task Status Lifecycle
  A task is PENDING until somebody claims it and RUNNING until an outcome is recorded. It ends as SUCCESS, FAILED or
  CANCELLED, and never changes again. A failure that will be retried takes the task through FAILED back to PENDING in
  one step, so that nobody ever sees it due too early.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @LIFECYCLE-1
  Scenario Outline: A task goes through five statuses and no others
    When a caller enqueues <call> with max_retries=2
    # LIFECYCLE-1
    Then the task is PENDING
    When a worker polls
    And it is 12:00:01
    And a worker polls
    # LIFECYCLE-1
    Then the task is <end>
    # LIFECYCLE-1
    And the task went through <statuses>

    Examples:
      | call                   | end     | statuses                                               |
      | add(2, 3)              | SUCCESS | PENDING, RUNNING, SUCCESS                              |
      | fail_before_attempt(2) | SUCCESS | PENDING, RUNNING, FAILED, PENDING, RUNNING, SUCCESS    |
      | fail("boom")           | FAILED  | PENDING, RUNNING, FAILED, PENDING, RUNNING, FAILED     |

  @LIFECYCLE-1
  Scenario: A task that is claimed is RUNNING, and one that is cancelled CANCELLED
    When a caller enqueues add(2, 3)
    And worker "w" claims up to 1 task
    # LIFECYCLE-1
    Then the task is RUNNING
    When a caller cancels the task
    # LIFECYCLE-1
    Then the task is CANCELLED
    # LIFECYCLE-1
    And the task went through PENDING, RUNNING, CANCELLED

  @LIFECYCLE-2 @LIFECYCLE-3 @LIFECYCLE-4 @LIFECYCLE-5
  Scenario Outline: Status transition on failure with retry (simplified state machine)
    Given a retry waits <base> at first, 2 times longer after each further attempt, and at most 1 hour
    When a caller enqueues fail("boom") with max_retries=3
    And it is 12:00:10
    And a worker polls
    # LIFECYCLE-5
    Then fail("boom") has been executed 1 time
    # LIFECYCLE-2
    And the task has recorded 1 failure
    # LIFECYCLE-2
    And failure 1 of the task has attempt=1, error="ValueError: boom" and failed_at=12:00:10
    # LIFECYCLE-4
    And the task is PENDING
    # LIFECYCLE-3
    And failure 1 of the task has retry_at=<eta>
    # LIFECYCLE-4
    And the task has available_at=<eta>, finished_at=None and lease_expires_at=None
    # LIFECYCLE-2
    And the task went through PENDING, RUNNING, FAILED, PENDING
    When it is <just before>
    And a worker polls
    # LIFECYCLE-5
    Then fail("boom") has been executed 1 time
    When it is <eta>
    And a worker polls
    # LIFECYCLE-4
    Then fail("boom") has been executed 2 times

    Examples:
      | base       | eta      | just before     |
      | 1 second   | 12:00:11 | 12:00:10.999999 |
      | 90 seconds | 12:01:40 | 12:01:39.999999 |

  @LIFECYCLE-6 @LIFECYCLE-7 @LIFECYCLE-8
  Scenario: Status transition on final failure
    When a caller enqueues fail("boom") with max_retries=2
    And a worker polls
    And it is 12:00:01
    And a worker polls
    # LIFECYCLE-6, LIFECYCLE-8
    Then the task is FAILED
    # LIFECYCLE-6
    And the task has attempts=2, finished_at=12:00:01 and lease_expires_at=None
    When a caller gets the result of the task with timeout=0
    # LIFECYCLE-7
    Then the result has status=FAILED and finished_at=12:00:01
    # LIFECYCLE-7
    And the result's error contains "boom"
    # LIFECYCLE-8
    And failure 2 of the task has retry_at=None
    When it is 2031-01-01 12:00
    And a worker polls
    # LIFECYCLE-8
    Then fail("boom") has been executed 2 times
    And the task is unchanged

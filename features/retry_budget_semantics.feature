@BUDGET
Feature: Retry Budget Semantics
  A budget says how often a task may be executed in all: with max_retries=3 three times, with 0 or 1 once. What
  counts is claims, for a worker that takes a task and dies has spent an attempt too. The count never goes back.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @BUDGET-2 @BUDGET-3 @BUDGET-4
  Scenario: Attempts count total executions
    When a caller enqueues fail("boom") with max_retries=3
    Then the task has attempts=0
    When worker "w" claims up to 1 task
    Then the task is RUNNING
    # BUDGET-2
    And the task has attempts=1
    When worker "w" fails the task with "boom"
    Then the task is PENDING
    # BUDGET-4
    And the task has attempts=1
    When it is 12:01
    And worker "v" claims up to 1 task
    # BUDGET-3
    Then the task has attempts=2
    When worker "v" fails the task with "boom"
    # BUDGET-4
    Then the task has attempts=2
    When it is 12:02
    And worker "w" claims up to 1 task
    And worker "w" completes the task with 5
    # BUDGET-3, BUDGET-4
    Then the task has attempts=3

  @BUDGET-5 @BUDGET-6
  Scenario: Retry budget enforcement
    When a caller enqueues fail("boom") with max_retries=3
    And a worker polls
    And it is 12:01
    And a worker polls
    # BUDGET-5
    Then the task is PENDING
    # BUDGET-5
    And the task has attempts=2
    When it is 12:02
    And a worker polls
    # BUDGET-5
    Then fail("boom") has been executed 3 times
    # BUDGET-6
    And the task is FAILED
    # BUDGET-6
    And the task has attempts=3

  @BUDGET-1 @BUDGET-5 @BUDGET-6
  Scenario Outline: A budget counts executions
    When a caller enqueues fail("boom") with max_retries=<budget>
    And a worker polls every 1 minute until 12:06
    # BUDGET-1, BUDGET-5, BUDGET-6
    Then fail("boom") has been executed <executions>
    # BUDGET-1
    And the task has attempts=<attempts> and max_retries=<budget>
    # BUDGET-6
    And the task is FAILED
    And the task has recorded <failures>

    Examples:
      | budget | executions | attempts | failures   |
      | 0      | 1 time     | 1        | 1 failure  |
      | 1      | 1 time     | 1        | 1 failure  |
      | 2      | 2 times    | 2        | 2 failures |
      | 3      | 3 times    | 3        | 3 failures |

  @BUDGET-1
  Scenario Outline: The queue's own budget holds for tasks that name none
    Given the queue is configured with max_retries=2
    When a caller enqueues fail("boom") with max_retries=<budget>
    And a worker polls every 1 minute until 12:06
    # BUDGET-1
    Then the task has attempts=<attempts>

    Examples:
      | budget | attempts |
      | None   | 2        |
      | 0      | 1        |
      | 3      | 3        |

  @BUDGET-1 @BUDGET-3 @BUDGET-6
  Scenario Outline: A worker that dies spends the budget like any other failure
    When a caller enqueues add(2, 3) with max_retries=<budget>
    And worker "w" claims up to 1 task for 30 seconds
    And it is 12:00:30
    And expired leases are recovered
    # BUDGET-1, BUDGET-6
    Then the task is <status>
    # BUDGET-3
    And the task has attempts=1

    Examples:
      | budget | status  |
      | 0      | FAILED  |
      | 1      | FAILED  |
      | 2      | PENDING |

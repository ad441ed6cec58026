Feature: Recovery of tasks whose worker is lost
  A worker may die at any moment, and then nobody reports how its task ended. The lease tells: once it has run out,
  the attempt counts as failed, with an error that says so. The task is tried again if its budget allows; otherwise
  it ends, with a result. No task stays RUNNING for ever, and none runs more often than it may.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @D3
  Scenario: A lease that runs out brings the task back
    Given a caller enqueues add(2, 3) with task_id="a" and max_retries=2
    When worker "lost" claims up to 1 task for 30 seconds
    And it is 12:00:29.999999
    And expired leases are recovered
    Then the answer is 0
    And task "a" is RUNNING
    When it is 12:00:30
    And expired leases are recovered
    Then the answer is 1
    And task "a" is PENDING
    And task "a" has attempts=1, available_at=12:00:31 and lease_expires_at=None
    When it is 12:00:31
    And a worker polls
    Then task "a" is SUCCESS
    And add(2, 3) has been executed 1 time

  @R2
  Scenario: With its budget spent, a lost task ends with a result that says why
    Given a caller enqueues add(2, 3) with task_id="a"
    When worker "lost" claims up to 1 task for 30 seconds
    And it is 12:00:30
    And expired leases are recovered
    Then task "a" is FAILED
    When a caller gets the result of task "a" with timeout=0
    Then the result has status="failed", traceback=None and finished_at=12:00:30
    And the result's error contains "lease"

  @R1
  Scenario Outline: No task is claimed more often than its budget says, even if every worker dies
    Given a caller enqueues add(2, 3) with task_id="a" and max_retries=2
    When worker "first" claims up to 1 task for <lease>
    And it is 12:10
    And expired leases are recovered
    And it is 12:20
    And worker "second" claims up to 1 task for <lease>
    Then task "a" has attempts=2
    When it is 12:30
    And expired leases are recovered
    Then task "a" is FAILED
    And task "a" has attempts=2
    When it is 13:00
    And worker "third" claims up to 1 task
    Then worker "third" was given no task

    Examples:
      | lease         |
      | 1 microsecond |
      | 10 minutes    |

  @D3
  Scenario: A lease that was lengthened in time is left alone
    Given a caller enqueues add(2, 3) with task_id="a" and max_retries=2
    When worker "w" claims up to 1 task for 30 seconds
    And it is 12:00:29
    And worker "w" extends its lease on task "a" to 30 seconds from now
    And it is 12:00:30
    And expired leases are recovered
    Then the answer is 0
    And task "a" is RUNNING
    And task "a" has lease_expires_at=12:00:59

@L1
Feature: Cancellation
  A task that nobody wants any more can be cancelled, while it waits and while it runs. From then on it never runs
  again, whoever holds it has no say any more, and there is no result. What has ended already stays as it ended.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  Scenario: A task that waits is cancelled
    Given a caller enqueues add(2, 3) with task_id="a"
    When it is 12:00:05
    And a caller cancels task "a"
    Then the answer is True
    And task "a" is CANCELLED
    And task "a" has finished_at=12:00:05 and attempts=0
    When a worker polls
    Then add(2, 3) has been executed 0 times
    And task "a" is unchanged

  Scenario: A running task is cancelled, and what its worker reports is refused
    Given a caller enqueues add(2, 3) with task_id="a" and max_retries=3
    When worker "w" claims up to 1 task
    And a caller cancels task "a"
    Then the answer is True
    And task "a" is CANCELLED
    And task "a" has attempts=1 and lease_expires_at=None
    When worker "w" extends its lease on task "a" to 30 seconds from now
    Then the answer is False
    When worker "w" completes task "a" with 5
    Then the call is refused with StaleClaim
    When worker "w" fails task "a" with "boom"
    Then the call is refused with StaleClaim
    And task "a" is unchanged

  Scenario: Nobody gets a result of a cancelled task
    Given a caller enqueues add(2, 3) with task_id="a"
    And a caller cancels task "a"
    When a caller gets the result of task "a" with timeout=5
    Then the call is refused with TaskCancelled

  Scenario Outline: What has ended cannot be cancelled
    Given a caller enqueues <call> with task_id="a"
    And a worker polls
    Then task "a" is <status>
    When it is 12:10
    And a caller cancels task "a"
    Then the answer is False
    And task "a" is unchanged

    Examples:
      | call         | status  |
      | add(2, 3)    | SUCCESS |
      | fail("boom") | FAILED  |

  Scenario: An outcome is recorded once
    Given a caller enqueues add(2, 3) with task_id="a" and max_retries=3
    When worker "w" claims up to 1 task
    And worker "w" completes task "a" with 5
    Then task "a" is SUCCESS
    When worker "w" completes task "a" with 6
    Then the call is refused with StaleClaim
    When worker "w" fails task "a" with "boom"
    Then the call is refused with StaleClaim
    And task "a" is unchanged

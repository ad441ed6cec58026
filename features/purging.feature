@G1
Feature: Purging
  Results are kept until somebody removes them. Purging removes tasks that ended long enough ago, and no others: what
  waits or runs stays, however old it is.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  Scenario: What ended long ago is removed, and nothing else
    Given a caller enqueues add(1, 1) with task_id="done"
    And a caller enqueues fail("boom") with task_id="failed"
    And a caller enqueues add(1, 1) with task_id="waiting" and eta=2031-01-01 12:00
    And a worker polls
    And a caller enqueues add(1, 1) with task_id="running"
    And worker "w" claims up to 1 task
    When it is 12:30
    And a caller enqueues add(1, 1) with task_id="cancelled"
    And a caller cancels task "cancelled"
    And it is 13:00
    And tasks that ended more than 45 minutes ago are purged
    Then the answer is 2
    And task "done" is unknown
    And task "failed" is unknown
    And task "cancelled" is CANCELLED
    And task "waiting" is PENDING
    And task "running" is RUNNING

  Scenario Outline: A task is purged once it ended longer ago than was said
    Given a caller enqueues add(1, 1) with task_id="a"
    And a worker polls
    Then task "a" is SUCCESS
    When it is <now>
    And tasks that ended more than 1 hour ago are purged
    Then the answer is <removed>
    And the store holds <left> SUCCESS tasks

    Examples:
      | now             | removed | left |
      | 12:59:59.999999 | 0       | 1    |
      | 13:00           | 0       | 1    |
      | 13:00:00.000001 | 1       | 0    |

  Scenario: A purged id is free again
    Given a caller enqueues add(1, 1) with task_id="a"
    And a worker polls
    And it is 13:00
    And tasks that ended more than 1 minute ago are purged
    Then the answer is 1
    When a caller enqueues add(2, 2) with task_id="a"
    Then task "a" is PENDING
    And task "a" has attempts=0 and enqueued_at=13:00

Feature: Task ids
  A caller who does not know whether an enqueue has landed may repeat it with the same id: the queue keeps one task
  for one id, and says so. Calls about an id that nobody has enqueued are refused, and leave nothing behind.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @L1
  Scenario: An id that is known is refused, and the task stays as it is
    Given a caller enqueues add(2, 3) with task_id="a"
    Then task "a" is PENDING
    When it is 12:10
    And a caller enqueues echo("other") with task_id="a" and max_retries=3
    Then the call is refused with TaskExists
    And task "a" is unchanged
    When a worker polls
    Then task "a" is SUCCESS
    When a caller enqueues echo("other") with task_id="a"
    Then the call is refused with TaskExists
    And task "a" is unchanged

  @API
  Scenario Outline: Of several tasks in one step all are enqueued or none
    Given a caller enqueues add(2, 3) with task_id="known"
    When a caller enqueues add(2, 3) in one step as <tasks>
    Then the call is refused with TaskExists
    And task "new" is unknown
    And the store holds 1 PENDING task

    Examples:
      | tasks                     |
      | tasks "new", "known"      |
      | tasks "known", "new"      |
      | tasks "new", "new"        |

  @L3
  Scenario: An id that nobody has enqueued is unknown
    When a caller gets the result of task "nobody" with timeout=5
    Then the call is refused with TaskNotFound
    When a caller cancels task "nobody"
    Then the call is refused with TaskNotFound
    And task "nobody" is unknown

  @ETA
  Scenario: An eta without a time zone is refused, and nothing is enqueued
    When a caller enqueues add(2, 3) with eta=13:00 without a time zone
    Then the call is refused with InvalidArgument
    And the store holds 0 PENDING tasks

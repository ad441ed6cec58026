@API
Feature: Async TaskQueue API
  An application hands a call to the queue and goes on with its own work. Later it asks what became of the call, with
  the id that it was given, and says how long it is ready to wait for the answer.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @API-1 @API-2 @API-3
  Scenario: Enqueue task with default settings
    When a caller enqueues add(2, 3)
    And a caller enqueues add(2, 3)
    # API-2
    Then every task has an id of its own
    # API-1, API-2
    And the task is PENDING
    And the task has attempts=0 and max_retries=0
    When the store is opened again
    # API-2
    Then the task is unchanged
    # API-3
    When a worker polls
    # API-3
    Then add(2, 3) has been executed 2 times
    And the task is SUCCESS

  @API-1 @API-4 @API-5
  Scenario Outline: Get result with timeout
    When a caller enqueues <call>
    And a worker polls
    And a caller gets the result of the task with timeout=<timeout>
    # API-1, API-4
    Then the result belongs to the task
    # API-5
    And the result has status="<status>"

    Examples: The task has ended before anybody asks
      | call         | timeout | status  |
      | add(2, 3)    | 5       | success |
      | fail("boom") | 5       | failed  |
      | add(2, 3)    | 0       | success |
      | fail("boom") | 0       | failed  |

  @API-4 @API-5
  Scenario Outline: Get result of a task that ends while the caller waits
    When a caller enqueues <call>
    And a worker polls 0.02 seconds after a caller began to get the result of the task with timeout=5
    # API-4
    Then the result belongs to the task
    # API-5
    And the result has status="<status>"
    And the caller has waited at least 0.02 seconds and less than 4 seconds

    Examples:
      | call         | status  |
      | add(2, 3)    | success |
      | fail("boom") | failed  |

  @API-6
  Scenario Outline: Get result not ready
    When a caller enqueues add(2, 3) with eta=13:00
    # API-6
    And a caller gets the result of the task with timeout=<timeout>
    # API-6
    Then the result is None
    # API-6
    And the caller has waited at least <least> and less than 4 seconds
    And the task is PENDING

    Examples:
      | timeout | least        |
      | 0       | 0 seconds    |
      | 0.05    | 0.05 seconds |

  @API-6
  Scenario: A task that waits for a retry has no result yet
    When a caller enqueues fail("boom") with max_retries=2
    And a worker polls
    Then the task has recorded 1 failure
    # API-6
    When a caller gets the result of the task with timeout=0
    # API-6
    Then the result is None

  @API-4
  Scenario: A result can be read again and again
    When a caller enqueues add(2, 3)
    And a worker polls
    And a caller gets the result of the task with timeout=5
    Then the result's value is 5, serialised
    When the store is opened again
    And a caller gets the result of the task with timeout=5
    # API-4
    Then the result's value is 5, serialised

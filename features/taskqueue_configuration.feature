@CONFIG
Feature: TaskQueue configuration and defaults
  A queue works without any configuration: it keeps its tasks in a file in the working directory. Whoever needs
  something else passes a backend, a serializer or a default timeout. Used in an "async with" block, it connects at
  the beginning and lets go of everything at the end.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @CONFIG-1 @CONFIG-2 @CONFIG-3
  Scenario: Construct TaskQueue with defaults
    When a caller constructs a TaskQueue without arguments
    # CONFIG-1, CONFIG-2
    Then its backend is an SQLiteBackend that keeps "taskqueue.db" in the working directory
    # CONFIG-1, CONFIG-3
    And its serializer is a CloudpickleSerializer, for payloads and results

  @CONFIG-1
  Scenario: A serializer of one's own is used for payloads and results
    Given the queue is configured with serializer="reversing"
    When a caller enqueues add(2, 3) with context={"request_id": "abc"}
    # CONFIG-1
    Then the payload of the task carries the context {"request_id": "abc"}
    When a worker polls
    And a caller gets the result of the task with timeout=5
    # CONFIG-1
    Then the result's value is 5, serialised

  @CONFIG-1 @CONFIG-4
  Scenario Outline: Default result timeout
    Given the queue is configured with default_result_timeout=<default>
    When a caller enqueues add(2, 3) with eta=13:00
    # CONFIG-4
    And a caller gets the result of the task with timeout=None
    # CONFIG-4
    Then the result is None
    # CONFIG-1, CONFIG-4
    And the caller has waited at least <least> and less than <most>

    Examples:
      | default | least        | most      |
      | 0       | 0 seconds    | 1 second  |
      | 0.05    | 0.05 seconds | 1 second  |
      | 0.2     | 0.2 seconds  | 2 seconds |

  @CONFIG-4
  Scenario: The default timeout leaves time for a task to end
    Given the queue is configured with default_result_timeout=5
    When a caller enqueues add(2, 3)
    And a worker polls 0.02 seconds after a caller began to get the result of the task with timeout=None
    # CONFIG-4
    Then the result has status="success"

  @CONFIG-5
  Scenario Outline: A timeout of the call overrides the default
    Given the queue is configured with default_result_timeout=<default>
    When a caller enqueues add(2, 3) with eta=13:00
    # CONFIG-5
    And a caller gets the result of the task with timeout=<timeout>
    # CONFIG-5
    Then the result is None
    # CONFIG-5
    And the caller has waited at least <least> and less than <most>

    Examples: A shorter one, a longer one, and zero
      | default | timeout | least        | most        |
      | 5       | 0.05    | 0.05 seconds | 4 seconds   |
      | 0       | 0.1     | 0.1 seconds  | 4 seconds   |
      | 5       | 0       | 0 seconds    | 4 seconds   |

  @CONFIG-1 @CONFIG-6 @CONFIG-7
  Scenario: Use TaskQueue as async context manager
    When a caller enters "async with" on a new queue
    # CONFIG-1, CONFIG-6
    Then the backend is connected
    When a caller enqueues add(2, 3)
    Then the task is PENDING
    When the block ends
    # CONFIG-1, CONFIG-7
    Then the backend is closed
    When the store is opened again
    # CONFIG-7
    Then the task is unchanged

  @CONFIG-7
  Scenario: The block ends with an exception
    When a caller enters "async with" on a new queue
    And the block ends with an exception
    # CONFIG-7
    Then the backend is closed

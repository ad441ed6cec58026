@CONTEXT
Feature: Task context support
  What belongs to a task without being an argument of its function, such as the id of the request that caused it,
  travels with it as its context. The context is part of the payload: a backend keeps it without looking at it.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @CONTEXT-1 @CONTEXT-2 @CONTEXT-3
  Scenario: Preserve task context in payload
    When a caller enqueues request_id() with context={"request_id": "abc"}
    # CONTEXT-1, CONTEXT-2, CONTEXT-3
    Then the payload of the task carries the context {"request_id": "abc"}
    When the store is opened again
    # CONTEXT-3
    Then the payload of the task carries the context {"request_id": "abc"}
    And the task is unchanged
    When a worker polls
    And a caller gets the result of the task with timeout=5
    # CONTEXT-1, CONTEXT-3
    Then the result's value is "abc", serialised

  @CONTEXT-2
  Scenario Outline: Any dictionary is kept as it is, and none is none
    When a caller enqueues request_id() with context=<context>
    # CONTEXT-2
    Then the payload of the task carries the context <context>

    Examples:
      | context                                       |
      | None                                          |
      | {}                                            |
      | {"request_id": None, "tags": ["a", "b"]}      |
      | {"request_id": "Zürich 東京", "depth": {"x": 1}} |

  @CONTEXT-3
  Scenario: A retry sees the same context
    When a caller enqueues request_id() with context={"request_id": "abc"} and max_retries=2
    And worker "w" claims up to 1 task
    And worker "w" fails the task with "lost"
    And it is 12:00:01
    And a worker polls
    And a caller gets the result of the task with timeout=5
    # CONTEXT-3
    Then the result's value is "abc", serialised

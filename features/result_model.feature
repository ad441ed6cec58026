@RESULT
Feature: Result model
  A result says how a task ended: with a value, or with an error that a person can read. The value is kept in its
  serialised form, so that a client can look at an outcome without loading code that it does not have or trust.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @RESULT-1 @RESULT-2 @RESULT-3 @RESULT-4 @RESULT-5
  Scenario Outline: Successful result
    When a caller enqueues <call>
    And it is 12:00:07.000001
    And a worker polls
    # RESULT-2
    Then the task is SUCCESS
    When a caller gets the result of the task with timeout=5
    # RESULT-1, RESULT-2
    Then the result has status="success"
    # RESULT-1, RESULT-3
    And the result's value is <value>, serialised
    # RESULT-4
    And the result has error=None and traceback=None
    # RESULT-5
    And the result has enqueued_at=12:00 and finished_at=12:00:07.000001

    Examples: Coroutine functions and plain ones; values that count as false
      | call         | value   |
      | add(2, 3)    | 5       |
      | echo("text") | "text"  |
      | echo(None)   | None    |
      | echo(0)      | 0       |
      | echo("")     | ""      |
      | echo([])     | []      |

  @RESULT-2
  Scenario: A result outlives the connection that it was written through
    When a caller enqueues add(2, 3)
    And a worker polls
    And the store is opened again
    And a caller gets the result of the task with timeout=5
    # RESULT-2
    Then the result has status="success"
    And the result's value is 5, serialised

  @RESULT-1 @RESULT-6 @RESULT-7 @RESULT-8 @RESULT-9
  Scenario: Failed result
    When a caller enqueues fail("the disk is full")
    And it is 12:00:07.000001
    And a worker polls
    # RESULT-6
    Then the task is FAILED
    When the store is opened again
    And a caller gets the result of the task with timeout=5
    # RESULT-1, RESULT-6
    Then the result has status="failed"
    And the result has value=None
    # RESULT-7
    And the result's error contains "the disk is full"
    # RESULT-8
    And the result's traceback contains "Traceback (most recent call last)"
    # RESULT-8
    And the result's traceback contains "in fail"
    # RESULT-9
    And the result has finished_at=12:00:07.000001
    And the result has enqueued_at=12:00

  @RESULT-7
  Scenario: The error of an exception without a message is its class
    When a caller enqueues fail()
    And a worker polls
    And a caller gets the result of the task with timeout=5
    # RESULT-7
    Then the result's error contains "ValueError"

  @RESULT-6 @RESULT-7
  Scenario: The result of a task that was retried is that of its last attempt
    When a caller enqueues fail("boom") with max_retries=2
    And a worker polls
    And it is 12:00:01
    And a worker polls
    And a caller gets the result of the task with timeout=5
    # RESULT-6
    Then the result has status="failed" and attempts=2
    And the result has finished_at=12:00:01
    # RESULT-7
    And the result's error contains "boom"

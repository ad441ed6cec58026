@ETA
Feature: ETA scheduling semantics
  A task that names no eta is due at once. A task with an eta is due from that very instant on, to the
  microsecond, and never before. Callers may say the instant in any time zone; it is the same instant in UTC.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @ETA-1 @ETA-2 @ETA-3
  Scenario: Immediate task scheduling
    Given it is 12:00:00.000001
    When a caller enqueues add(2, 3) with eta=None
    # ETA-2
    Then the task has available_at=12:00:00.000001
    # ETA-1, ETA-3
    When a worker polls
    # ETA-1, ETA-3
    Then add(2, 3) has been executed 1 time

  @ETA-1 @ETA-4 @ETA-5
  Scenario: Delayed task scheduling
    When a caller enqueues add(2, 3) with eta=13:00
    # ETA-1, ETA-4
    Then the task has available_at=13:00
    When it is 12:59:59.999999
    And a worker polls
    # ETA-5
    Then add(2, 3) has been executed 0 times
    And the task is PENDING
    When it is 13:00
    And a worker polls
    # ETA-1
    Then add(2, 3) has been executed 1 time
    And the task is SUCCESS

  @ETA-4 @ETA-5
  Scenario Outline: An eta with another offset is the same instant in UTC
    When a caller enqueues add(2, 3) with eta=<eta>
    # ETA-4
    Then the task has available_at=<utc>
    When it is <just before>
    And a worker polls
    # ETA-5
    Then add(2, 3) has been executed 0 times
    When it is <utc>
    And a worker polls
    Then add(2, 3) has been executed 1 time

    Examples:
      | eta                    | utc                    | just before            |
      | 15:00+02:00            | 13:00                  | 12:59:59.999999        |
      | 07:30-05:00            | 12:30                  | 12:29:59.999999        |
      | 18:15+05:45            | 12:30                  | 12:29:59.999999        |
      | 2030-01-02 01:00+09:00 | 2030-01-01 16:00       | 15:59:59.999999        |

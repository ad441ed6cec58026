Feature: Claims and leases
  A worker holds a task by a claim: the task's id and the number of the attempt. However many workers there are, at
  most one of them holds a task, and only that one may say how it ended. A lease says how long a claim holds if
  nothing is heard of the worker; once it has run out, somebody else may take the task.

  Background:
    Given a queue on the backend under test
    And the queue reads back what it writes

  @E1
  Scenario: A task is due from its eta on, and not a microsecond earlier
    Given a caller enqueues add(2, 3) with task_id="a" and eta=12:30
    When it is 12:29:59.999999
    And worker "w" claims up to 5 tasks
    Then worker "w" was given no task
    And task "a" is PENDING
    When it is 12:30
    And worker "w" claims up to 5 tasks
    Then worker "w" was given task "a"

  @E2
  Scenario Outline: A claim takes as many tasks as are due, up to its limit
    Given a caller enqueues add(1, 1) in one step as tasks "a", "b", "c"
    And a caller enqueues add(1, 1) with task_id="later" and eta=12:00:00.000001
    When worker "w" claims up to <limit>
    Then worker "w" was given <given>
    And the store holds <running> RUNNING tasks
    When worker "v" claims up to 9 tasks
    Then worker "v" was given <left>
    And task "later" is PENDING

    Examples:
      | limit   | given               | running | left                |
      | 0 tasks | no task             | 0       | tasks "a", "b", "c" |
      | 1 task  | task "a"            | 1       | tasks "b", "c"      |
      | 3 tasks | tasks "a", "b", "c" | 3       | no task             |
      | 9 tasks | tasks "a", "b", "c" | 3       | no task             |

  @C3
  Scenario: What is due first is claimed first, and what was enqueued first among equals
    Given a caller enqueues add(1, 1) with task_id="third" and eta=11:00
    And a caller enqueues add(1, 1) with task_id="fourth" and eta=11:00
    And a caller enqueues add(1, 1) with task_id="second" and eta=10:59:59.999999
    And a caller enqueues add(1, 1) with task_id="first" and eta=2029-12-31 23:00
    When worker "w" claims up to 2 tasks
    Then worker "w" was given tasks "first", "second"
    When worker "w" claims up to 2 tasks
    Then worker "w" was given tasks "third", "fourth"

  @C3
  Scenario: A task that is retried keeps its place among equals
    Given a retry waits 1 minute at first, 1 times longer after each further attempt, and at most 1 minute
    And a caller enqueues fail("boom") with task_id="older" and max_retries=2
    And a caller enqueues add(1, 1) with task_id="newer" and eta=12:01
    When worker "w" claims up to 1 task
    And worker "w" fails task "older" with "boom"
    And it is 12:01
    And worker "w" claims up to 2 tasks
    Then worker "w" was given tasks "older", "newer"

  @C1
  Scenario: A task that somebody holds is given to nobody else
    Given a caller enqueues add(2, 3) with task_id="a"
    When worker "w" claims up to 1 task
    And worker "v" claims up to 1 task
    Then worker "w" was given task "a"
    And worker "v" was given no task
    When it is 12:10
    And worker "v" claims up to 1 task
    Then worker "v" was given no task
    And task "a" has attempts=1

  @C2
  Scenario: A claim shows at once, with its lease
    Given a caller enqueues add(2, 3) with task_id="a"
    When it is 12:00:05
    And worker "w" claims up to 1 task for 40 seconds
    Then task "a" is RUNNING
    And task "a" has started_at=12:00:05, lease_expires_at=12:00:45 and available_at=12:00
    And the store holds 0 PENDING tasks

  @L2
  Scenario: A worker whose task somebody else has taken has no say any more
    Given a caller enqueues add(2, 3) with task_id="a" and max_retries=3
    When worker "slow" claims up to 1 task for 30 seconds
    And it is 12:00:30
    And expired leases are recovered
    And it is 12:00:31
    And worker "next" claims up to 1 task for 30 seconds
    Then worker "next" was given task "a"
    And task "a" has attempts=2
    When worker "slow" completes task "a" with 5
    Then the call is refused with StaleClaim
    When worker "slow" fails task "a" with "too late"
    Then the call is refused with StaleClaim
    When worker "slow" extends its lease on task "a" to 10 minutes from now
    Then the answer is False
    And task "a" is unchanged
    When worker "next" completes task "a" with 6
    Then task "a" is SUCCESS

  @L2
  Scenario: A lease that has run out changes nothing until somebody takes the task
    Given a caller enqueues add(2, 3) with task_id="a"
    When worker "slow" claims up to 1 task for 30 seconds
    And it is 12:10
    Then task "a" is RUNNING
    When worker "slow" completes task "a" with 5
    Then task "a" is SUCCESS
    And task "a" has finished_at=12:10

  @L2
  Scenario: A heartbeat lengthens a lease and never shortens it
    Given a caller enqueues add(2, 3) with task_id="a"
    When worker "w" claims up to 1 task for 30 seconds
    And it is 12:00:20
    And worker "w" extends its lease on task "a" to 30 seconds from now
    Then the answer is True
    And task "a" has lease_expires_at=12:00:50
    When worker "w" extends its lease on task "a" to 5 seconds from now
    Then the answer is True
    And task "a" has lease_expires_at=12:00:50

  @LISTING
  Scenario: The queue knows when it has something to do next
    Given a caller enqueues add(2, 3) with task_id="a" and eta=12:30
    Then nothing is due before 12:30
    When it is 12:30
    And worker "w" claims up to 1 task for 40 seconds
    Then nothing is due before 12:30:40

"""Opening an SQLite file as a store: what is there is looked at before SQLite may touch it."""

import errno
import logging
import os
import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar
from weakref import WeakSet

from taskqueue.backends._sqlite_fork import in_child
from taskqueue.backends._sqlite_schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION
from taskqueue.errors import IncompatibleStore, StoreUnavailable

_LOG: Final = logging.getLogger("taskqueue.backends.sqlite")

Synchronous = Literal["FULL", "NORMAL"]
T = TypeVar("T")

_OLDEST_SQLITE: Final = (3, 35, 0)
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PRIMARY_CODE: Final = 0xFF
_LOCKED_ADVICE: Final = "another program has kept it locked for longer than busy_timeout; the call may be repeated"
_WHAT_TO_DO: Final = {
    sqlite3.SQLITE_BUSY: _LOCKED_ADVICE,
    sqlite3.SQLITE_LOCKED: _LOCKED_ADVICE,
    sqlite3.SQLITE_FULL: "make room on its disk, and repeat the call; nothing has changed",
    sqlite3.SQLITE_IOERR: "the system could not read or write it: look at the disk, its free room, and limits",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable for this user",
    sqlite3.SQLITE_PERM: "make the file and its directory writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make the file and its directory readable and writable for this user",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: stop everything that uses it, and restore a copy, or save what can "
    "be saved with the command .recover of sqlite3",
    sqlite3.SQLITE_NOTADB: "the file is damaged, or something else: stop everything that uses it, and restore a copy",
}
_PAUSE_SECONDS: Final = 0.001
_LATER_PAUSE_SECONDS: Final = 0.01
_PAUSES_BEFORE_LATER: Final = 1000
_CHECKPOINT_PAGES: Final = 1000  # SQLite's default
_LONG_LOG_PAGES: Final = 6_000
_LONGEST_LOG_PAGES: Final = 60_000
_COPIER_SECONDS: Final = 0.1

# POSIX drops all locks that a process has on a file as soon as the process closes any descriptor of it. So the file is
# read directly only while no connection of this process has it open; SQLite itself takes care of that.
_OPEN: "Counter[Identity]" = Counter()
_OPEN_LOCK: Final = threading.Lock()
_FILES: "WeakSet[StoreFile]" = WeakSet()


class Identity(NamedTuple):
    """What stays the same about a file while it is open, whatever its path."""

    device: int
    inode: int


class StoreFile:
    """An open connection to a store, used by one thread at a time. Every method may block.

    It waits for no lock itself: a statement for which another connection's lock is in the way is refused at once, with
    an error that ``is_busy`` knows.

    Args:
        path: The absolute path. A missing file is created, readable by its owner only.
        synchronous: The pragma of that name.
        busy_timeout: How many seconds to wait here for a lock that another connection holds.
        expected: Which file it has to be. None is created then, and no other is opened.

    Attributes:
        identity: Which file it is.
        busy_timeout: The same, for those who wait elsewhere.

    Raises:
        IncompatibleStore: What is there is no taskqueue's, or a newer one's. It has not been touched.
        StoreUnavailable: It cannot be opened.
    """

    def __init__(
        self, path: str, *, synchronous: Synchronous, busy_timeout: float, expected: Identity | None = None
    ) -> None:
        self.path = path
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreUnavailable(
                path, f"this Python has SQLite {sqlite3.sqlite_version}; 3.35 or newer is needed. Use another Python"
            )
        try:
            self.identity = _register(path, expected)
        except OSError as error:
            raise StoreUnavailable(path, _advice(path, error)) from error
        try:
            self.db = _connect(path)
            try:
                _patiently(lambda: _prepare(self.db, path, synchronous), busy_timeout)
                # While this connection is open nobody who plays by SQLite's rules removes or replaces these.
                real = os.path.realpath(path)  # beside which SQLite has put them
                self._in_use = [(path, self.identity)] + [
                    (name, found)
                    for name in (f"{real}-wal", f"{real}-shm")
                    if (found := _identity_of(name)) is not None
                ]
            except BaseException:
                self.db.close()
                raise
        except sqlite3.Error as error:
            _unregister(self.identity)
            raise unavailable(path, error) from error
        except BaseException:
            _unregister(self.identity)
            raise
        self.busy_timeout = busy_timeout
        self._checkpoints = True
        self._copier: sqlite3.Connection | None = None
        self._version: int | None = None
        _FILES.add(self)

    def set_checkpoints(self, on: bool) -> None:  # noqa: FBT001 - a setting
        """Set whether a commit now and then copies the log to the file, which may take long; on at first."""
        if on != self._checkpoints:
            self.db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES if on else 0}")
            self._checkpoints = on

    def is_only_writer(self) -> bool:
        """Whether no other connection has written since this was asked before. To be asked where ``db`` is used."""
        try:
            (version,) = self.db.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return False  # the next call tells its caller
        before, self._version = self._version, version
        return bool(version == before)

    def checkpoint(self, *, only_writer: bool) -> None:
        """Copy the log to the file, so that it is written from its beginning again.

        On a connection of its own: another thread can use ``db`` meanwhile, and whoever can, writes on. Once the log
        has become long, because somebody always does, writers are kept away while the last of it is copied. Where
        others than ``db`` write, that may last as long as the disk takes for what they wrote; so it is put off longer.
        """
        if self._copier is None:
            self.check_in_place()
            self._copier = _connect(self.path, timeout=_COPIER_SECONDS)
        _busy, pages, _copied = self._copier.execute("PRAGMA wal_checkpoint (PASSIVE)").fetchone()
        if pages > (_LONG_LOG_PAGES if only_writer else _LONGEST_LOG_PAGES):
            self._copier.execute("PRAGMA wal_checkpoint (RESTART)").fetchone()

    def check_in_place(self) -> None:
        """Raise StoreUnavailable if the file, its log or the log's index is not there: what is written may be lost."""
        for name, identity in self._in_use:
            _check_identity(self.path, name, identity)

    def check_present(self) -> None:
        """Raise StoreUnavailable if the file is not there: what was written just now may be lost."""
        _check_identity(self.path, self.path, self.identity)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        try:
            if self._copier is not None:
                self._copier.close()
            self.db.close()
        finally:
            identity, self.identity = self.identity, _NOWHERE
            _unregister(identity)


_NOWHERE: Final = Identity(-1, -1)


def _connect(path: str, *, timeout: float = 0) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{Path(path).as_uri()}?mode=rw",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def _identity_of(name: str) -> Identity | None:
    try:
        found = os.stat(name)  # noqa: PTH116 - for each call of a method, and a Path costs more than the question
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino)


def _check_identity(path: str, name: str, identity: Identity) -> None:
    try:
        found = os.stat(name)  # noqa: PTH116 - as above
        missing = False
    except OSError:
        missing = True
    if missing or found.st_ino != identity.inode or found.st_dev != identity.device:
        what = "removed" if missing else "replaced by another"
        raise StoreUnavailable(
            path,
            f"{name} was {what} while it was open. Put the file back, or close this handle and connect again (a "
            "worker: restart it). Move or restore a store only while nobody has it open",
        )


def _close_inherited() -> None:
    for file in list(_FILES):
        file.close()


in_child(_close_inherited)


def unavailable(path: str, error: Exception) -> StoreUnavailable:
    """Return what to raise in place of an error of SQLite's, or one about what is stored."""
    name = getattr(error, "sqlite_errorname", None)
    reason = f"{error} ({name})" if name else str(error)
    advice = _WHAT_TO_DO.get((getattr(error, "sqlite_errorcode", None) or 0) & _PRIMARY_CODE)
    return StoreUnavailable(path, f"{reason}; {advice}" if advice else reason)


def is_busy(error: BaseException) -> bool:
    """Whether the error says that another connection holds a lock."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & _PRIMARY_CODE in _BUSY


def _advice(path: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return f"{reason}; create the directory {Path(path).parent} first"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{reason}; the file must be readable and writable for this user"
    return reason


def _register(path: str, expected: Identity | None) -> Identity:
    """Find or create the file, and see that it may be opened; count it as open."""
    with _OPEN_LOCK:
        if expected is not None:
            _check_identity(path, path, expected)
        try:
            found = Path(path).stat()
        except FileNotFoundError:
            if expected is not None:
                raise
            found = _create(path)
        if not stat.S_ISREG(found.st_mode):
            raise IncompatibleStore(path, found=None, supported=SCHEMA_VERSION)
        identity = Identity(found.st_dev, found.st_ino)
        if not _OPEN[identity]:
            _inspect(path)
        _OPEN[identity] += 1
        return identity


def _unregister(identity: Identity) -> None:
    with _OPEN_LOCK:
        _OPEN[identity] -= 1
        if _OPEN[identity] <= 0:
            del _OPEN[identity]


def _create(path: str) -> os.stat_result:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    except FileExistsError:  # somebody else was quicker
        return Path(path).stat()
    try:
        _LOG.info("created %s", path)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _inspect(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        header = os.read(descriptor, _HEADER_BYTES)
    finally:
        os.close(descriptor)
    if not header:
        return  # new, or about to become a store in another process
    version = int.from_bytes(header[60:64], "big")
    application_id = int.from_bytes(header[68:72], "big")
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC) or application_id != APPLICATION_ID:
        raise IncompatibleStore(path, found=None, supported=SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise IncompatibleStore(path, found=version, supported=SCHEMA_VERSION)


def _prepare(db: sqlite3.Connection, path: str, synchronous: Synchronous) -> None:
    """Make the tables where there are none, and set what SQLite keeps for each connection.

    May be repeated. The tables are made before the switch to WAL, so that the header always tells what the file is.
    """
    if not _is_ours(db):
        db.execute("BEGIN IMMEDIATE")
        try:
            if not _is_ours(db):
                if not _is_empty(db):
                    raise IncompatibleStore(path, found=None, supported=SCHEMA_VERSION)
                for statement in SCHEMA:
                    db.execute(statement)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise IncompatibleStore(path, found=version, supported=SCHEMA_VERSION)
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailable(path, f"SQLite cannot use its write-ahead log here (it chose {mode}). Use a local disk")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # which opens the log and its index


def _is_ours(db: sqlite3.Connection) -> bool:
    found: int = db.execute("PRAGMA application_id").fetchone()[0]
    return found == APPLICATION_ID


def _is_empty(db: sqlite3.Connection) -> bool:
    questions = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    return not any(db.execute(question).fetchone()[0] for question in questions)


def pauses(patience: float) -> Iterator[float]:
    """Yield how many seconds to sleep before each new try to get a lock, ``patience`` seconds in all.

    SQLite would wait by itself, with pauses of up to a tenth of a second: who waits so long beside a busy writer finds
    the lock taken again and again. Counted, not timed: a clock may stand still.
    """
    count = 0
    while patience > 0:
        pause = min(_PAUSE_SECONDS if count < _PAUSES_BEFORE_LATER else _LATER_PAUSE_SECONDS, patience)
        yield pause
        patience -= pause
        count += 1


def _patiently(action: Callable[[], T], patience: float) -> T:
    """Repeat while another connection is in the way."""
    for pause in pauses(patience):
        try:
            return action()
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
            time.sleep(pause)
    return action()

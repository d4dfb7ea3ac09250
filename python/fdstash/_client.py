"""The blocking client: each call returns when it is done."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Callable, Iterable, Iterator, List, Optional, Type, TypeVar, Union

from . import _job
from ._address import default_socket
from ._core import Core, Staged
from ._errors import Error
from ._handed import Handed, close_all
from ._repetition import Repetitions
from ._terms import Entry, Explanation, Gift, Info, Notice, Reopening, Statistics, Verb
from ._transport import Blocking, now
from ._watching import Watching

R = TypeVar("R")


class Client:
    """A connection to the daemon, renewed when it is lost.

    It is of one thread at a time: a call while another is under way, or beside an open transaction, raises
    RuntimeError and does nothing. Threads that are to work at once have a client each. A process that is
    forked can go on with the client: it gets a connection of its own.

    At the end of a `with`, or by `disconnect`, the connection is closed; what it gave as ephemeral ends.
    """

    def __init__(self, core: Core) -> None:
        """Not to be called: `connect` and `connect_to` make one."""
        self._core = core

    @classmethod
    def connect(cls) -> Client:
        """Connects to the daemon at `default_socket`. Raises NoDaemon if nobody can be reached there."""
        return cls.connect_to(default_socket())

    @classmethod
    def connect_to(cls, socket: Union[str, os.PathLike[str]]) -> Client:
        """Connects to the daemon at a socket. Raises NoDaemon if nobody can be reached there."""
        core = Core(Blocking, socket)
        now(core.connect())
        return cls(core)

    def disconnect(self) -> None:
        """Closes the connection, and every descriptor that `unconfirmed` would hand out. A later call
        connects anew.
        """
        self._core.disconnect()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"<fdstash.Client {self.socket!r}>"

    @property
    def socket(self) -> str:
        """The socket that it is connected to."""
        return self._core.socket

    def give(self, gifts: Iterable[Gift], *, exclusive: bool = False) -> List[str]:
        """Keeps descriptors, and tells the names whose old ones made room; with `exclusive`, keeps them
        under names that are free, else none of them. They are only borrowed, and stay the caller's too.
        What they outlive, `Statistics.keeper` tells.

        An ephemeral gift lives as long as this connection, also where the client renews it unseen.

        Raises any Error (AlreadyExists where it is exclusive); then none of them is kept, except after
        ConnectionLost, which tells.
        """
        return now(self._core.run(_job.give(gifts, exclusive)))

    def take(self, names: Iterable[str], *, wait: float = 0) -> List[Handed]:
        """Takes descriptors out of the stash, in the order of the names. They are the caller's alone, to
        close, and close-on-exec. The stash lets go of them only when all have arrived. Waits so many
        seconds for names that are not there yet, or held by another's transaction.

        Raises any Error; then the stash keeps them all, but for those that `unconfirmed` has.
        """
        return now(self._core.run(_job.take(names, wait)))

    def unconfirmed(self) -> List[Handed]:
        """Hands out descriptors that earlier calls have left here: they had arrived, and then the daemon
        did not confirm the take or the reopen, since the call was interrupted, or the daemon did not come
        back, or not with what it had kept; so it may have let go of them. Until they are fetched, the
        client keeps them.
        """
        return self._core.take_unconfirmed()

    def copy(
        self, names: Iterable[str], *, fresh: bool = False, wait: float = 0
    ) -> List[Handed]:
        """Hands out duplicates, in the order of the names, which share offset, flags and locks with what
        the stash keeps; with `fresh`, open file descriptions of their own, so that nothing done to them
        touches what it keeps. They are the caller's, to close, and close-on-exec. Waits so many seconds for
        names that are not there yet, or held by another's transaction.

        Raises any Error (ReopenFailed for what cannot be opened anew, as a socket); then none is handed
        out.
        """
        return now(self._core.run(_job.copy(names, fresh, wait)))

    def close(self, names: Iterable[str]) -> None:
        """Has the daemon close descriptors and forget them. (The client itself has `disconnect`.)

        Raises any Error; then all are still kept, except after ConnectionLost, which tells.
        """
        now(self._core.run(_job.close(names)))

    def reopen(self, reopenings: Iterable[Reopening]) -> List[Handed]:
        """Opens kept files anew with other flags, and hands out descriptors of the same kind, or with less
        access where that is asked for (`Reopening.hand_out`), that share nothing with what is kept, in the
        order of the reopenings. They are the caller's, to close, and close-on-exec.

        Raises any Error; then the stash keeps all as it was, except after ConnectionLost that may be done:
        what was handed out then, `unconfirmed` has.
        """
        return now(self._core.run(_job.reopen(reopenings)))

    def list(self, pattern: str = "*") -> List[Entry]:
        """Lists the entries whose names match, in the order of their names. In a pattern stand `*` for any
        characters, and `?` for one.

        Raises any Error of the connection.
        """
        return now(self._core.run(_job.list_entries(pattern)))

    def statistics(self) -> Statistics:
        """Asks for the daemon's figures. Raises any Error of the connection."""
        return now(self._core.run(_job.statistics()))

    def explain_policy(self, uid: int, gids: Iterable[int], verb: Verb, name: str) -> Explanation:
        """Asks what the policy says to a user who is in these groups, and why. It takes root.

        Raises PermissionDenied to others, and any Error of the connection.
        """
        return now(self._core.run(_job.explain_policy(uid, gids, verb, name)))

    def info(self) -> Info:
        """Asks the daemon what it is. Raises any Error of the connection."""
        return now(self._core.run(_job.info()))

    def transaction(self) -> Transaction:
        """Makes a transaction, which the `with` that it is for begins: what is done in it becomes final
        together at the end of the `with`, or, where that ends by an exception, not at all.
        """
        return Transaction(self._core)

    def transact(self, act: Callable[[Transaction], R]) -> R:
        """Does several calls as one: `act` in a transaction, and then its commit. Where the connection is
        lost before that is final, as when the daemon is killed or upgraded in its middle, all of it is
        undone and done anew; so too for two seconds where somebody else holds a name. So `act` may be
        called more than once, and what it returned last is what was committed. What a round has handed out
        that was not committed is closed; what one has that nobody could confirm, `unconfirmed` has.

        Raises what `act` raises, and then all is rolled back; or any Error of the commit.
        """
        repetitions = Repetitions(Blocking)
        while True:
            transaction = Transaction(self._core)
            try:
                with transaction:
                    done = act(transaction)
                return done
            except Error as error:
                transaction._end_of_round()
                failure = error
            except BaseException:
                transaction._end_of_round()
                raise
            now(repetitions.after_undone(failure))

    def watch(self, pattern: str = "*") -> Watch:
        """Makes a watch of the entries whose names match, on a connection of its own, which the `with` that
        it is for begins: every change from then on is told.
        """
        return Watch(self._core, pattern)


class Transaction:
    """A transaction on a client's connection. Until it is committed, nobody else can touch the names in it.
    The end of its `with` commits it; an exception there rolls it back.

    Where the connection is lost in it, all of it is rolled back and every further call raises RolledBack.
    So it is where NoRoom has lost a descriptor that was handed out, and where a call of more than 253
    descriptors, which is several messages, fails half-way. What was handed out stays the caller's.
    """

    def __init__(self, core: Core) -> None:
        """Not to be called: `Client.transaction` makes one."""
        self._core = core
        self._staged = Staged(core)
        self._handed: List[Handed] = []

    def __enter__(self) -> Transaction:
        now(self._staged.begin())
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if not self._staged.is_open:
            return
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def give(self, gifts: Iterable[Gift], *, exclusive: bool = False) -> List[str]:
        """As `Client.give`. Raises any Error; then it has done nothing."""
        return now(self._staged.run(_job.give(gifts, exclusive)))

    def take(self, names: Iterable[str], *, wait: float = 0) -> List[Handed]:
        """As `Client.take`; the stash lets go of them at the commit. Raises any Error; then it has done
        nothing.
        """
        return self._keep(now(self._staged.run(_job.take(names, wait))))

    def copy(
        self, names: Iterable[str], *, fresh: bool = False, wait: float = 0
    ) -> List[Handed]:
        """As `Client.copy`. Raises any Error; then it has done nothing."""
        return self._keep(now(self._staged.run(_job.copy(names, fresh, wait))))

    def close(self, names: Iterable[str]) -> None:
        """As `Client.close`. Raises any Error; then it has done nothing."""
        now(self._staged.run(_job.close(names)))

    def reopen(self, reopenings: Iterable[Reopening]) -> List[Handed]:
        """As `Client.reopen`. Raises any Error; then it has done nothing."""
        return self._keep(now(self._staged.run(_job.reopen(reopenings))))

    def commit(self) -> None:
        """Makes all of it final, before the end of the `with`.

        Raises any Error; then nothing of it was done, except after ConnectionLost, which tells.
        """
        now(self._staged.commit())

    def rollback(self) -> None:
        """Undoes all of it, before the end of the `with`. It cannot fail: what is not committed is undone
        with the connection's end too. When it returns, the names are free for others, unless the connection
        was lost.
        """
        now(self._staged.rollback())

    def _keep(self, handed: List[Handed]) -> List[Handed]:
        self._handed += handed
        return handed

    def _end_of_round(self) -> None:
        """What `transact` does about what was handed out, where it was not committed."""
        if self._staged.is_in_doubt:
            self._core.keep_unconfirmed(self._handed)
        else:
            close_all(self._handed)


class Watch(Iterator[Notice]):
    """The changes of the entries that a watch is about, for ever: each waits for the next.

    Standing says that the connection was lost and the watch stands anew: changes may have gone untold, so
    list anew. After an error it ends; so it does at the end of its `with`.
    """

    def __init__(self, core: Core, pattern: str) -> None:
        """Not to be called: `Client.watch` makes one."""
        self._watching = Watching(core, pattern)

    def __enter__(self) -> Watch:
        now(self._watching.begin())
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._watching.end()

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Notice:
        notice = now(self._watching.next())
        if notice is None:
            raise StopIteration
        return notice

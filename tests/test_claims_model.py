"""Claims against a plain model, in random sequences."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from sessionstore import (
    Claim,
    ConflictError,
    LeaseLostError,
    SessionStore,
    State,
    Task,
    TransitionError,
)
from sessionstore.jobs.states import check_transition
from tests.test_claims import end_lease

UNDER_WAY = {State.SUBMITTED, State.RUNNING, State.TERMINATING}
numbers = st.integers(0, 30)


@dataclass
class Job:
    """What should be known of one task."""

    states: list[State]
    token: int = 0
    attempts: int = 0
    is_held: bool = False
    has_expired: bool = False

    def recover(self, max_attempts: int) -> None:
        self.is_held = self.has_expired = False
        if self.states[-1] is State.STOPPED:
            return
        if self.attempts >= max_attempts:
            self.exhaust()
        else:
            self.states.append(State.UNKNOWN)

    def exhaust(self) -> None:
        if self.states[-1] is State.NEW:
            self.states.append(State.UNKNOWN)
        self.states.append(State.TERMINATED)


class ClaimMachine(RuleBasedStateMachine):
    """G6: two sessions claim, write, lose and recover; all claims stay around."""

    url = ""
    number = 0
    MAX_ATTEMPTS = 3

    @initialize()
    def open(self) -> None:
        type(self).number += 1
        name = f"s{type(self).number}"
        self.sessions = [SessionStore(self.url, name) for _ in range(2)]
        self.jobs: dict[int, Job] = {}
        self.claims: list[Claim] = []

    @rule(number=numbers)
    def add(self, number: int) -> None:
        id_ = self.sessions[number % 2].add(Task())
        self.jobs[id_] = Job([State.NEW])

    @rule(number=numbers, n=st.integers(1, 3), limited=st.booleans())
    def claim(self, number: int, n: int, limited: bool) -> None:
        limit = self.MAX_ATTEMPTS if limited else None
        expected = []
        for id_, job in self.jobs.items():
            is_free = not job.is_held and job.states[-1] in (State.NEW, State.UNKNOWN)
            if is_free and len(expected) < n:
                if limit is not None and job.attempts >= limit:
                    job.exhaust()
                else:
                    job.is_held, job.has_expired = True, False
                    job.token += 1
                    job.attempts += 1
                    expected.append((id_, job.token, job.attempts))
        claims = self.sessions[number % 2].claim(n, max_attempts=limit)
        assert [(c.id, c.token, c.attempts) for c in claims] == expected
        self.claims.extend(claims)

    @rule(number=numbers, to=st.sampled_from(State), saves=st.booleans())
    def write(self, number: int, to: State, saves: bool) -> None:
        if not self.claims:
            return
        claim = self.claims[number % len(self.claims)]
        job = self.jobs[claim.id]
        if not self.holds(claim):
            with pytest.raises(LeaseLostError):
                claim.transition(to)
            with pytest.raises(LeaseLostError):
                claim.renew()
            return
        if saves:
            claim._session.refresh(claim.task)
            claim.task.number = number
        try:
            check_transition(claim.id, job.states[-1], to)
        except TransitionError:
            with pytest.raises(TransitionError):
                claim.transition(to)
            return
        claim.transition(to)
        job.states.append(to)
        if to is State.TERMINATED:
            job.is_held = job.has_expired = False

    @rule(number=numbers)
    def write_past_the_claim(self, number: int) -> None:
        if not self.jobs:
            return
        id_ = list(self.jobs)[number % len(self.jobs)]
        job = self.jobs[id_]
        session = self.sessions[number % 2]
        if job.is_held:
            with pytest.raises(ConflictError):
                session.transition(id_, State.UNKNOWN)
        elif job.states[-1] is State.TERMINATED:
            session.redo(id_)
            job.states.append(State.NEW)
            job.attempts = 0
        else:
            session.transition(id_, State.UNKNOWN)
            job.states.append(State.UNKNOWN)

    @rule(number=numbers)
    def renew_or_release(self, number: int) -> None:
        if not self.claims:
            return
        claim = self.claims[number % len(self.claims)]
        job = self.jobs[claim.id]
        if self.holds(claim):
            if number % 2:
                claim.renew()
                job.has_expired = False
                return
            if job.states[-1] in UNDER_WAY:
                job.states.append(State.UNKNOWN)
            job.is_held = job.has_expired = False
        elif job.is_held:
            with pytest.raises(LeaseLostError):
                claim.release()
            return
        if claim.token == job.token:
            claim.release()

    @rule(number=numbers)
    def expire(self, number: int) -> None:
        if self.claims:
            claim = self.claims[number % len(self.claims)]
            job = self.jobs[claim.id]
            if job.is_held:
                end_lease(self.sessions[0], claim.id)
                job.has_expired = True

    @rule(number=numbers, reaps=st.booleans())
    def recover(self, number: int, reaps: bool) -> None:
        expected = {id_ for id_, job in self.jobs.items() if job.has_expired}
        for id_ in expected:
            job = self.jobs[id_]
            job.token += reaps
            job.recover(self.MAX_ATTEMPTS)
        recovered = self.sessions[number % 2].recover(
            max_attempts=self.MAX_ATTEMPTS, reap=(lambda task: None) if reaps else None
        )
        assert set(recovered) == expected

    def holds(self, claim: Claim) -> bool:
        job = self.jobs[claim.id]
        return job.is_held and job.token == claim.token

    @invariant()
    def history_is_the_models(self) -> None:
        if hasattr(self, "sessions"):
            for id_, job in self.jobs.items():
                history = self.sessions[0].history(id_)
                assert [entry.to_state for entry in history] == job.states

    def teardown(self) -> None:
        for session in getattr(self, "sessions", []):
            session.close()


def test_claims_follow_a_model(database_url: str) -> None:
    """G6: whatever is done in whatever order, a task has one holder at most."""
    kind = type("Machine", (ClaimMachine,), {"url": database_url})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

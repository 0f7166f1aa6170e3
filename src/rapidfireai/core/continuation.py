"""Which stored runs the configurations of a script are, when it is run again."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rapidfireai.core.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """The match between a script's configurations and an experiment's runs."""

    known: tuple[Run | None, ...]
    """For each configuration the run that it is, None for a new one; then clones of these."""
    missing: tuple[Run, ...]
    """Runs whose configuration is not in the script."""

    @property
    def all_known(self) -> tuple[Run, ...]:
        """All runs that were stored."""
        return (*(run for run in self.known if run is not None), *self.missing)

    def with_clones(self, clones: Sequence[Run], are_known: Sequence[bool]) -> "Continuation":
        """The same with runs that were cloned while the script ran before.

        Args:
            clones: Further stored runs.
            are_known: Whether what each was cloned from is in the script.
        """
        pairs = list(zip(clones, are_known, strict=True))
        return replace(
            self,
            known=(*self.known, *(run for run, is_known in pairs if is_known)),
            missing=(*self.missing, *(run for run, is_known in pairs if not is_known)),
        )


def match_runs(stored: Sequence[Run], identities: Sequence[str]) -> Continuation:
    """Match configurations with runs by identity; equal ones in their order."""
    by_identity: dict[str, deque[Run]] = defaultdict(deque)
    for run in stored:
        by_identity[run.identity].append(run)
    known = tuple(
        by_identity[identity].popleft() if by_identity[identity] else None
        for identity in identities
    )
    taken = {run.id for run in known if run is not None}
    return Continuation(known=known, missing=tuple(run for run in stored if run.id not in taken))

"""One pass over a text, at whose events all diagnostics listen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from assay.diagnostics import Diagnostic
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows


@torch.no_grad()
def observe(
    subject: Subject,
    windows: Windows,
    listeners: Sequence[Diagnostic],
    report: Callable[[float], None] = lambda share: None,
) -> None:
    """Run the model over the windows, batch by batch; ``report`` is told the share that is done."""
    events = {name: _together(listeners, name) for name in ("on_attention", "on_layer", "on_neurons", "on_output")}
    if not any(events.values()):
        return
    done = 0
    for batch in windows.batches(subject.device):
        with subject.listening(
            batch.domains[0],
            attention=events["on_attention"],
            layer=events["on_layer"],
            neurons=events["on_neurons"],
        ):
            output = subject.output(batch.ids)
        if events["on_output"] is not None:
            events["on_output"](output)
        done += len(batch.ids)
        report(done / len(windows.ids))


def _together(listeners: Sequence[Diagnostic], event: str) -> Callable[[Any], None] | None:
    """One function that tells all who listen to an event; None if nobody does."""
    told = [getattr(one, event) for one in listeners if getattr(type(one), event) is not getattr(Diagnostic, event)]
    if not told:
        return None

    def tell(event: Any) -> None:
        for function in told:
            function(event)

    return tell

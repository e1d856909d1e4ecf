"""The output: size of the logits, entropy, confidence and calibration.

    log normalizer      ln Z = ln Σ_v exp(logit_v)
    logit rms           sqrt( mean over v of (logit_v − mean logit)² )
    entropy             H(p) in nats,    confidence  max p,    accuracy  share of tokens whose best guess is right
    overconfidence      mean confidence − accuracy

Logits whose normalizer drifts away from 0 cost precision and end in spikes, which is why PaLM adds 1e-4 ln² Z to its
loss (Chowdhery et al., 2022, arXiv:2204.02311; Wortsman et al., 2023, arXiv:2309.14322).
"""

from __future__ import annotations

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import Output
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

DRIFT = 100.0
OVERCONFIDENT = 0.1


@diagnostics.register("output-logits")
class OutputLogits(Diagnostic):
    """``loss``, ``entropy``, ``confidence``, ``accuracy``, ``overconfidence``, ``log_normalizer``, ``logit_rms``."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()

    def on_output(self, output: Output) -> None:
        value, token = output.best
        samples = {
            "loss": output.loss,
            "entropy": output.entropy,
            "confidence": (value - output.log_normalizer).exp(),
            "accuracy": (token == output.targets).float(),
            "log_normalizer": output.log_normalizer,
            "logit_rms": output.logits.std(-1, unbiased=False),
        }
        for name, sample in samples.items():
            self.means.add(name, 0, sample.flatten())

    def result(self) -> Result:
        names = ("loss", "entropy", "confidence", "accuracy", "log_normalizer", "logit_rms")
        scalars = {name: self.means.of(name, 0).item() for name in names}
        scalars["overconfidence"] = over = scalars["confidence"] - scalars["accuracy"]
        drift = abs(scalars["log_normalizer"])
        found = []
        if drift >= DRIFT:
            found.append(
                Finding(
                    "output-logits",
                    "logit-growth",
                    f"the logits' log normalizer ln Z is {scalars['log_normalizer']:.4g} on average",
                    drift,
                    DRIFT,
                    "chosen here: there the z-loss of PaLM, 1e-4 ln² Z, would be a whole nat",
                    "the logits have drifted together away from 0, where 16 bits are coarse; training may spike",
                    (),
                    drift / DRIFT,
                )
            )
        if over >= OVERCONFIDENT:
            found.append(
                Finding(
                    "output-logits",
                    "miscalibration",
                    f"the best guess has probability {scalars['confidence']:.2f} on average and is right in "
                    f"{scalars['accuracy']:.2f} of cases",
                    over,
                    OVERCONFIDENT,
                    "chosen here: ten points",
                    "probabilities of this model overstate what it knows on this text",
                    (),
                    over / OVERCONFIDENT,
                )
            )
        return Result(scalars, {}, found)

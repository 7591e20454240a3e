"""The SAEs over the run's time: held-out FVU, L0 against the configured one, dead and dense, loss."""

from __future__ import annotations

from asys_bench.reports.page.markup import Markup
from asys_bench.reports.page.quantity import number
from asys_bench.reports.run_report.curves import Line, chart
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.reports.run_report.series import rate, since_set
from asys_bench.reports.run_report.timeline import moments


def sae_curves(record: RunRecord) -> list[Markup]:
    """The figures, those without data left out; one line per hook."""
    metrics, end_s = record.metrics, record.metrics.end_s
    marks = [moment for moment in moments(record) if moment.bad]

    def lines(metric: str) -> list[Line]:
        return [Line(key.hook, since_set(metrics.points(key))) for key in metrics.find(metric)]

    trained = [
        Line(key.hook, rate(metrics.points(key))) for key in metrics.find("sae_rows_trained")
    ]
    drawn = [
        chart(
            "Fraction of variance unexplained, held out",
            "",
            lines("sae_fvu"),
            end_s,
            moments=marks,
        ),
        chart(
            "Fraction of variance unexplained, outliers included",
            "",
            lines("sae_fvu_all") if _has_outliers(record) else [],
            end_s,
            moments=marks,
        ),
        chart(
            "Active features per row (L0)",
            "",
            lines("sae_l0"),
            end_s,
            moments=marks,
            level=_configured_l0(record),
        ),
        chart("Dead features", "", lines("sae_dead_ratio"), end_s, moments=marks, share=True),
        chart(
            "Fraction of variance unexplained, newest window",
            "",
            lines("sae_window_fvu"),
            end_s,
            moments=marks,
        ),
        chart(
            "Features that kept their direction",
            "",
            lines("sae_feature_survival_ratio"),
            end_s,
            moments=marks,
            share=True,
        ),
        chart("Drift of the input", "", lines("sae_input_drift"), end_s, moments=marks),
        chart("Training loss", "", lines("sae_loss"), end_s, moments=marks),
        chart("Dense features", "", lines("sae_dense_ratio"), end_s, moments=marks, share=True),
        chart("Trained", "rows/s", trained, end_s, moments=marks),
    ]
    return [figure for figure in drawn if figure is not None]


def _has_outliers(record: RunRecord) -> bool:
    metrics = record.metrics
    return any(
        metrics.points(key)[-1:] and metrics.points(key)[-1][1] > 0
        for key in metrics.find("sae_outlier_rows")
    )


def _configured_l0(record: RunRecord) -> tuple[float, str] | None:
    """The configured L0, when all SAEs have the same."""
    saes = record.summary.saes if record.summary is not None else ()
    found = {sae.configured_l0 for sae in saes if sae.configured_l0 is not None}
    if len(found) != 1:
        return None
    (wanted,) = found
    return wanted, f"configured {number(wanted)}"

"""The report stage: report.html, report.md and the model card, from manifests, scores and traces."""

from pipeline.report.stage import run

__all__ = ["run"]

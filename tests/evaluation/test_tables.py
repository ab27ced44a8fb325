"""`--csv` and `--latex`: the metrics of a report as tables."""

import pandas as pd

from tests.cli.scored import TAL
from tests.evaluation.small import load


def test_tables_hold_the_metrics_with_floors_and_intervals(scored, unloc):
    words = f"{TAL} --predictions tal.json --out scores --csv m.csv --latex m.tex --intervals"
    code, _, errors = unloc(*words.split())
    assert code == 0, errors
    metrics, table = load(scored / "scores/metrics.json"), pd.read_csv(scored / "m.csv", index_col="metric")
    assert table["ours"].to_dict() == metrics["metrics"]
    assert table["blind_constant"].to_dict() == metrics["floors"]["blind_constant"]
    assert table[["low", "high"]].loc["mAP@0.50"].tolist() == metrics["intervals"]["mAP@0.50"]
    text = (scored / "m.tex").read_text()
    assert r"mAP@0.50 & 100.0 & " in text and r"blind\_constant" in text and text.count("\\\\") == len(table) + 1
    (scored / "m.csv").write_text("mine")
    code, _, errors = unloc(*words.split())
    assert code == 2 and "--csv" in errors

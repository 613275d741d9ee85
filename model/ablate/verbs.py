"""``python -m model ablate TABLE``: options in, a table run, its report's place and verdicts out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ablate`` to the command line."""
    verb = verbs.add_parser(
        "ablate", help="run one of the paper's ablation tables, or all, at the length you give"
    )
    verb.set_defaults(verb=_ablate)
    verb.add_argument(
        "table",
        nargs="+",
        help="1a, 1b, 1c, 1d, 1e, 1f, fig5, fig7, fig9, loss, table2, recipe, all, or a TOML file; several at once",
    )
    length = verb.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", type=float, help="minutes for the whole table")
    length.add_argument(
        "--samples",
        type=int,
        help="photos a row sees; tables in one folder then share the rows they have in common",
    )
    verb.add_argument(
        "--tuned", type=int, default=0, help="with --samples: photos seen in fine-tuning (default 0: none)"
    )
    seeds = verb.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seeds", type=int, default=0,
        help="run the unchanged recipe with this many more seeds, and widen intervals by what they change (default 0)",
    )  # fmt: skip
    seeds.add_argument(
        "--repeat", type=int, default=1,
        help="run every row with this many seeds: figures are means, widened by what the seeds change (default 1)",
    )  # fmt: skip
    verb.add_argument("--data", nargs="+", action="extend", required=True, help="photos to pre-train on")
    verb.add_argument(
        "--labelled", nargs="+", action="extend", help="labelled training photos (default: --data)"
    )
    verb.add_argument("--test", nargs="+", action="extend", required=True, help="labelled test photos")
    verb.add_argument("--photos", nargs="+", action="extend", help="photos to repaint (default: --test)")
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder, for one table or all; the same command continues there",
    )
    verb.add_argument(
        "--recipe", default="ablation", help="name or file of the recipe that rows change (default ablation)"
    )
    verb.add_argument("--size", help="instead of the recipe's")
    verb.add_argument(
        "--equal", choices=("samples", "minutes"), default="samples", help="what all rows have in common"
    )
    verb.add_argument(
        "--rows",
        action="append",
        help="only these rows: a name, or several with commas between; may be repeated",
    )
    verb.add_argument("--label-share", type=float, default=1.0, help="share of the labels (default 1)")
    verb.add_argument("--limit", type=int, default=200, help="photos to repaint at most (default 200)")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    verb.add_argument("--workers", type=int, default=1, help="decoding threads (default 1)")
    verb.add_argument("--json", action="store_true")


def _ablate(given: argparse.Namespace) -> str:
    from model.ablate import report, runs, tables
    from model.pretrain.recipe import load_recipe

    wanted = tables.names() if given.table == ["all"] else given.table
    asked = [tables.load(name).only(given.rows) for name in wanted]
    setting = runs.Setting(
        recipe=given.recipe,
        size=given.size,
        data=tuple(given.data),
        labelled=tuple(given.labelled or given.data),
        test=tuple(given.test),
        photos=tuple(given.photos or given.test),
        out=given.out,
        budget_min=given.budget,
        samples=given.samples,
        tuned=given.tuned,
        seeds=given.seeds,
        repeat=given.repeat,
        equal=given.equal,
        label_share=given.label_share,
        limit=given.limit,
        device=given.device,
        workers=given.workers,
    )
    answers: list[dict[str, Any]] = []
    judged: list[tuple[tables.Table, list[dict[str, str]]]] = []
    seeds: report.Seeds = {}
    if setting.seeds:
        alike = tables.of_seeds(load_recipe(setting.recipe).seed, setting.seeds)
        rows = runs.run(alike, setting)
        report.write(alike, setting, rows, seeds)
        seeds = report.spread([[row["figures"] for row in rows if "figures" in row]])
    for table in asked:
        rows = runs.run(table, setting)
        if setting.repeat > 1:
            seeds = report.spread((row["each_run"] for row in rows if "each_run" in row), setting.repeat)
        written, claims = report.write(table, setting, rows, seeds)
        judged.append((table, claims))
        answers.append(
            {
                "table": table.name,
                "rows": report.without_photos(rows),
                "claims": claims,
                "report": str(written),
            }
        )
    if len(asked) > 1:
        written = report.write_all(setting, judged)
    if given.json:
        return json.dumps(answers if len(asked) > 1 else answers[0])
    failed = [(of["table"], row) for of in answers for row in of["rows"] if "error" in row]
    return "\n".join(
        [f"{of['verdict']:12s} {of['words']} ({of['ours']})" for _, claims in judged for of in claims]
        + [f"{table}, {row['name']} could not be run: {row['error']}" for table, row in failed]
        + [f"Report: {written}"]
    )

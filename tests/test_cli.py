import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from distkg.cli import app, main
from distkg.cluster.ray_train.launch import TrainingError
from distkg.config import RunConfig, load_config
from distkg.data.store.graph_store import Store
from distkg.reporting.run_record import RunError
from distkg.sharding.ranks import Ranks

COMMANDS = [
    "prepare",
    "generate",
    "inductive-split",
    "negatives",
    "relation-text",
    "tokens",
    "train",
    "tune",
    "extend",
    "evaluate",
    "predict",
    "predict-relation",
    "import-checkpoint",
    "export",
    "plan",
    "report",
    "presets",
    "warm",
    "config",
    "demo",
]
APPLICATION: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MODULES_OF_HELP = 281  # of all kinds, Python's own included
WORLD = ["--entities", "300", "--relations", "6", "--triples", "2000", "--seed", "1"]


def run_cli(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "store"
    assert run_cli("generate", "--store", path, *WORLD).exit_code == 0
    return path


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained in this process, without Ray."""
    from distkg.training.run import train_on_rank

    run = tmp_path_factory.mktemp("cli") / "run"
    overrides = [f"data.store={store}", "model.dim=32", "train.epochs=6", "train.workers=1", "train.batch_size=128"]
    train_on_rank(load_config("preset:demo", overrides), run, Ranks.single())
    return run


@pytest.fixture
def fact(store: Path) -> tuple[str, str, str]:
    """Labels of the first test triple."""
    opened = Store.open(str(store))
    head, relation, tail = opened.triples("test")[0]
    labels = opened.entity_labels()
    return labels[int(head)].as_py(), opened.relation_labels()[int(relation)].as_py(), labels[int(tail)].as_py()


def configuration(folder: Path, **changes: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(changes))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = run_cli(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f"Example: distkg {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    options = [each for each in APPLICATION[command].params if each.param_type_name == "option"]
    assert {each.name for each in options if not (each.help or "").strip()} - {"help"} == set()
    text = run_cli(command, "--help").stdout
    shown = {line.split()[0].rstrip(",") for line in re.findall(r"^  +-.*$", text, re.MULTILINE)}
    assert [each.opts for each in options if not shown & {*each.opts, *each.secondary_opts}] == []


def test_help_lists_every_command() -> None:
    assert sorted(APPLICATION) == sorted(COMMANDS)
    text = run_cli("--help").stdout
    assert [command for command in COMMANDS if f"  {command} " not in text] == []


def test_help_imports_little() -> None:
    """It is there at once as long as it needs few modules, and no library of arrays."""
    code = """if True:
        import atexit, sys
        atexit.register(lambda: print("\\nmodules:", *sys.modules))
        from distkg.cli import main
        sys.argv = ["distkg", "train", "--help"]
        main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, modules = done.stdout.split("\nmodules: ")
    assert "Example: distkg train" in text
    assert {"torch", "ray", "pyarrow", "numba", "numpy"} & set(modules.split()) == set()
    assert len(modules.split()) < 2 * MODULES_OF_HELP


def test_version() -> None:
    assert run_cli("--version").stdout == "distkg 0.1.0\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_the_help_parses(command: str) -> None:
    text = " ".join(run_cli(command, "--help").stdout.split())
    example = re.split(" > | && ", text.split(f"Example: distkg {command}", 1)[1])[0]
    with APPLICATION[command].make_context(command, shlex.split(example)) as context:
        given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    assert len(given) >= bool(example.strip())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no.yaml", "--run", "r"], "error: configuration 'no.yaml' is not a file"),
        (["config", "preset:nope"], "error: there is no preset 'preset:nope'"),
        (["config", "preset:demo", "--set", "model.dimm=3"], "model.dimm: is not a key of model"),
        (["plan", "preset:demo"], "error: data.store is empty"),
        (["plan", "preset:demo", "--set", "data.store=/no/where"], "error: there is no store at /no/where"),
        (["report", "/no/where"], "error: there is no run folder '/no/where'"),
        (["evaluate", "/no/where"], "error: "),
        (["prepare", "/no/where.tsv", "--store", "/no/store"], "error: "),
        (["prepare", "x.tsv", "--store", "s", "--split", "0.9,0.1"], "must be three shares"),
        (["predict", "r", "--relation", "x"], "use --anchor and --relation"),
        (["predict", "r", "--queries", "x.tsv"], "--queries and --output must be used together"),
        (["train", "preset:demo"], "Missing option '--run'"),
        (["tune", "preset:demo", "--space", "preset:no", "--run", "r"], "error: there is no space 'preset:no'"),
        (["tune", "preset:demo", "--space", "no.yaml", "--run", "r"], "error: space 'no.yaml' is not a file"),
        (
            ["tune", "preset:demo", "--run", "r", "--rungs", "2", "--against", "seconds"],
            "error: --against seconds and --rungs exclude each other",
        ),
        (["tune", "preset:demo", "--run", "r", "--budget", "2"], "error: --budget is that of all rungs, and there are"),
        (
            ["tune", "preset:demo", "--run", "r", "--rungs", "3", "--trials", "3"],
            "error: --trials 3 are too few for --rungs 3",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("flags", "env"), [(["--debug"], {}), ([], {"DISTKG_DEBUG": "1"})])
def test_debug_shows_the_traceback(flags: list[str], env: dict[str, str]) -> None:
    result = run_cli(*flags, "config", "preset:nope", env=env)
    assert type(result.exception).__name__ == "ConfigError"


def test_an_error_of_the_program_is_one_line_that_says_where_and_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RunConfig, "to_yaml", lambda self, help_text=False: 1 // 0)
    result = run_cli("config", "preset:demo")
    assert result.exit_code == 1
    place = r"\(distkg/cli/settings\.py:\d+, config\)"
    message = rf"error: ZeroDivisionError: .* {place}\. This is a bug in distkg: .*--debug.*\n"
    assert re.fullmatch(message, result.stderr)
    assert isinstance(run_cli("--debug", "config", "preset:demo").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "code"),
    [(TrainingError("workers were lost"), 1), (PermissionError("no access"), 2), (RunError("not a run"), 2)],
)
def test_what_an_error_says_and_how_it_exits(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def fail(run: Path, to: Path | None = None) -> Path:
        raise error

    monkeypatch.setattr("distkg.reporting.report.write_report", fail)
    result = run_cli("report", "somewhere")
    assert (result.exit_code, result.stderr) == (code, f"error: {error}\n")


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", "preset:nope"])
    assert caught.value.code == 2
    assert "error: there is no preset" in capsys.readouterr().err


def test_config_prints_what_a_run_would_use(tmp_path: Path) -> None:
    path = configuration(tmp_path, model={"name": "rotate"})
    result = run_cli("config", path, "--set", "model.dim=96", "--workers", "3")
    tree = yaml.safe_load(result.stdout)
    assert (tree["model"]["name"], tree["model"]["dim"], tree["train"]["workers"]) == ("rotate", 96, 3)
    assert "# Scorer or foundation model" in result.stdout
    saved = tmp_path / "again.yaml"
    saved.write_text(result.stdout)
    assert run_cli("config", saved).stdout == result.stdout


def test_the_schema_holds_for_configurations_and_for_no_others(tmp_path: Path) -> None:
    schema = json.loads(run_cli("config", "--schema").stdout)
    check = jsonschema.Draft202012Validator(schema)
    tree = yaml.safe_load(run_cli("config", "preset:hale_wn18rr").stdout)
    assert check.is_valid(tree)
    for section, key, value in (("model", "dims", 8), ("model", "dim", 0), ("optimizer", "name", "sgd")):
        assert not check.is_valid({**tree, section: {**tree[section], key: value}})
    assert schema["$defs"]["embedding.ModelConfig"]["properties"]["dim"]["resume"] == "fixed"
    keys = {name: set(definition["properties"]) for name, definition in schema["$defs"].items()}
    assert keys["embedding.DataConfig"] == {"store"}
    assert keys["foundation.DataConfig"] == {"store", "graphs", "fanouts", "sampler", "generated"}
    assert keys["relation_prediction.DataConfig"] == {"store", "graphs", "generated"}
    assert "activation_limit" in keys["embedding.ObjectiveConfig"] - keys["foundation.ObjectiveConfig"]
    assert "keep_start" in keys["foundation.ModelConfig"] - keys["embedding.ModelConfig"]
    assert "negatives" not in keys["relation_prediction"]
    ultra = yaml.safe_load(run_cli("config", "preset:ultra").stdout)
    assert check.is_valid(ultra)
    assert not check.is_valid({**ultra, "model": {**ultra["model"], "dim": 8}})
    for more in ((configuration(tmp_path),), ("--workers", "2"), ("--set", "model.dim=8")):
        assert "use it without CONFIG" in run_cli("config", "--schema", *more).stderr


def test_presets_are_listed_with_a_line_each() -> None:
    lines = run_cli("presets").stdout
    assert re.search(r"demo\s+A generated graph with known rules", lines)


def test_scorers_are_listed_with_their_paper_and_options() -> None:
    lines = run_cli("presets", "--scorers").stdout
    assert re.search(r"transe\s+TransE \(Bordes et al\. 2013", lines)
    assert "norm=l1" in lines


def test_generate_and_prepare_print_counts(store: Path, tmp_path: Path) -> None:
    lines = "a\tlikes\tb\nb\tlikes\tc\nc\tlikes\ta\na\tlikes\tb\n"
    (tmp_path / "train.tsv").write_text(lines)
    (tmp_path / "test.tsv").write_text("a\tlikes\tc\n")
    result = run_cli("prepare", tmp_path, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    counts = dict(re.findall(r"^\s+(\w+)\s+([\d,]+)\s*$", result.stdout, re.MULTILINE))
    assert counts == {"entities": "3", "relations": "1", "train": "3", "test": "1"} | {
        key: value for key, value in counts.items() if key == "valid"
    }
    assert re.search(r"warning: \w*duplicate\w*: 1, first at .*train\.tsv:4", result.stderr)
    assert Store.open(str(store)).num_entities == 300


def test_prepare_stops_at_a_bad_line_or_skips_it(tmp_path: Path) -> None:
    source = tmp_path / "graph.tsv"
    source.write_text("".join(f"e{i}\tr\te{(i * 7 + 1) % 50}\n" for i in range(50)) + "only two\tcolumns\n")
    failed = run_cli("prepare", source, "--store", tmp_path / "a")
    assert failed.exit_code == 2
    assert "graph.tsv:51" in failed.stderr
    skipped = run_cli("prepare", source, "--store", tmp_path / "b", "--on-error", "skip")
    assert skipped.exit_code == 0
    assert "rejects.tsv" in skipped.stderr


def test_prepare_reads_files_as_it_is_told(tmp_path: Path) -> None:
    source = tmp_path / "x.csv"
    source.write_bytes("x^y^kind\nKöln^NRW^liegt in\nBonn^NRW^liegt in\n".encode("cp1252"))
    chosen = ["--delimiter", "^", "--encoding", "cp1252", "--columns", "1,3,2", "--header", "--split", "1,0,0"]
    made = run_cli("prepare", source, "--store", tmp_path / "a", *chosen)
    assert "warning: header_lines: 1, first at x.csv:1" in made.stderr
    assert "note: x.csv: columns by its header: head = 'x' (column 1), relation = 'kind' (column 3)" in made.stderr
    assert sorted(Store.open(str(tmp_path / "a")).entity_labels().to_pylist()) == ["Bonn", "Köln", "NRW"]
    (tmp_path / "x.nt").write_text('<http://a> <http://b> <http://c> .\n<http://a> <http://b> "c" .\n')
    made = run_cli("prepare", tmp_path / "x.nt", "--store", tmp_path / "b", "--literals", "drop", "--split", "1,0,0")
    assert "warning: literals_dropped: 1, first at x.nt:2" in made.stderr
    failed = run_cli("prepare", tmp_path / "x.nt", "--store", tmp_path / "c", "--no-header")
    assert failed.exit_code == 2
    assert "--header and --no-header: only for delimited text, which none of the files (x.nt) is" in failed.stderr


def test_plan_prints_bytes_and_time(store: Path) -> None:
    result = run_cli("plan", "preset:demo", "--set", f"data.store={store}", "--workers", "2")
    assert result.exit_code == 0
    assert re.search(r"entity table\s+75\.0 KiB", result.stdout)  # 150 rows × 128 floats
    assert re.search(r"about [\d.]+ m?s per epoch", result.stdout)


def test_plan_of_a_foundation_model_lists_its_graphs(store: Path) -> None:
    options = ["--set", f"data.graphs=[{store}]", "--set", "model.options={width: 8, layers: 2, hidden: 8}"]
    result = run_cli("plan", "preset:ultra", *options, "--set", "train.time_limit_seconds=600")
    assert result.exit_code == 0
    facts = Store.open(str(store)).manifest.triples["train"]
    assert re.search(rf"300\s+6\s+{facts:,}\s+100\.0%", result.stdout)
    assert re.search(r"states of a batch\s+[\d.]+ MiB", result.stdout)
    assert "1.1 k parameters, 500 steps per epoch, about " in result.stdout
    assert "for 10 epochs; stopped after 10 min 00 s" in result.stdout
    found = json.loads(run_cli("plan", "preset:ultra", *options, "--json").stdout)
    assert found["graphs"][0]["facts"] == facts
    assert found["rows_per_worker"] == 0


def test_plan_as_json(store: Path) -> None:
    result = run_cli("plan", "preset:demo", "--set", f"data.store={store}", "--set", "model.dim=64", "--json")
    found = json.loads(result.stdout)
    assert found["memory"]["entity table"] == 150 * 64 * 4
    assert found["total_bytes"] == sum(found["memory"].values())
    assert found["seconds_per_epoch"] == pytest.approx(sum(found["seconds"].values()))


def test_plan_for_a_graph_and_machines_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "freebase.yaml").write_text(
        "model: {name: complex, dim: 128}\nobjective: {name: logistic}\noptimizer: {name: rowwise_adagrad}\n"
        "train: {batch_size: 196608}\n"
    )
    command = ["plan", str(tmp_path / "freebase.yaml"), "--graph", "86054151,14824,304727650"]
    result = run_cli(*command, "--cluster", "preset:r5dn_4")
    assert result.exit_code == 0, result.output
    assert "Memory per worker (192 × 448,199 entity rows)" in result.stdout  # ⌈86,054,151 / 192⌉
    assert "11 G parameters, 1,550 steps per epoch, about " in result.stdout  # ⌈304,727,650 / 196,608⌉
    found = json.loads(run_cli(*command, "--cluster", "preset:r5dn_4", "--json").stdout)
    assert found["available"] == 768 * 2**30 // 48
    both = run_cli(*command, "--cluster", "preset:r5dn_4", "--workers", "2")
    assert both.exit_code == 2
    assert "--workers and --cluster both set the number of workers: use one" in both.stderr
    here = run_cli("plan", "preset:demo", "--graph", "1000,10,5000")
    assert here.exit_code == 0, here.output
    assert "Memory per worker (2 × 500 entity rows)" in here.stdout


@pytest.mark.parametrize("command", [["plan"], ["train", "--run", "never"]])
def test_a_run_that_cannot_fit_is_refused_with_exit_code_3(store: Path, tmp_path: Path, command: list[str]) -> None:
    small = ["--set", f"data.store={store}", "--set", "cluster.memory_per_worker_gb=0.1"]
    result = run_cli(command[0], "preset:demo", *command[1:], *small)
    assert result.exit_code == 3
    assert "0.10 GiB are available" in result.stderr
    assert not Path("never").exists()


def test_evaluate_prints_tables_and_json(trained: Path, store: Path) -> None:
    result = run_cli("evaluate", trained)
    assert result.exit_code == 0, result.output
    for name in ("test", "tail", "head", "By category of relation", "By relation", "affiliated_with"):
        assert name in result.stdout
    found = json.loads(run_cli("evaluate", trained, "--json").stdout)
    assert found["metrics"]["queries"] == 2 * Store.open(str(store)).manifest.triples["test"]
    assert found["metrics"] == pytest.approx(json.loads((trained / "result.json").read_text())["metrics"]["test"])
    valid = json.loads(run_cli("evaluate", trained, "--split", "valid", "--json").stdout)
    assert valid["split"] == "valid"


def test_predict_lists_the_best_answers(trained: Path, fact: tuple[str, str, str]) -> None:
    head, relation, _ = fact
    arguments = ["predict", trained, "--anchor", head, "--relation", relation, "--top", "4"]
    found = json.loads(run_cli(*arguments, "--json").stdout)
    assert [answer["rank"] for answer in found] == [1, 2, 3, 4]
    assert [a["score"] for a in found] == sorted((a["score"] for a in found), reverse=True)
    table = run_cli(*arguments).stdout
    assert [answer["label"] for answer in found if answer["label"] not in table] == []


def test_predict_leaves_known_facts_out_or_marks_them(trained: Path, fact: tuple[str, str, str]) -> None:
    head, relation, tail = fact

    def labels(*options: str) -> dict[str, bool | None]:
        arguments = ["--anchor", head, "--relation", relation, "--top", "300", "--json", *options]
        return {a["label"]: a["known"] for a in json.loads(run_cli("predict", trained, *arguments).stdout)}

    marked = labels("--known", "mark")
    assert len(marked) == 300
    assert marked[tail] is True
    assert labels() == dict.fromkeys((label for label, known in marked.items() if not known), False)
    assert set(labels("--known", "keep")) == set(marked)


def test_predict_in_the_other_direction(trained: Path, fact: tuple[str, str, str]) -> None:
    head, relation, tail = fact
    options = ["--anchor", tail, "--relation", relation, "--inverse", "--top", "300", "--known", "mark", "--json"]
    found = json.loads(run_cli("predict", trained, *options).stdout)
    assert next(answer for answer in found if answer["label"] == head)["known"] is True


def test_predict_names_close_labels(trained: Path, fact: tuple[str, str, str]) -> None:
    result = run_cli("predict", trained, "--anchor", fact[0] + "x", "--relation", fact[1])
    assert result.exit_code == 2
    assert fact[0] in result.stderr


def test_predict_a_file_of_queries(trained: Path, fact: tuple[str, str, str], tmp_path: Path) -> None:
    head, relation, tail = fact
    queries, output = tmp_path / "queries.tsv", tmp_path / "answers.tsv"
    queries.write_text(f"{head}\t{relation}\tforward\n{tail}\t{relation}\tinverse\n")
    result = run_cli("predict", trained, "--queries", queries, "--output", output, "--top", "5")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"10 answers: {output}\n"
    assert len(output.read_text().splitlines()) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queries", "q.tsv", "--output", "a.tsv", "--anchor", "x"], "--anchor: for one query"),
        (["--queries", "q.tsv", "--output", "a.tsv", "--inverse", "--json"], "--inverse, --json: for one query"),
        (["--queries", "q.tsv", "--output", "a.tsv", "--explain", "2"], "--explain: for one query"),
        (["--queries", "q.tsv", "--output", "a.csv"], "predictions are written as .tsv or .parquet"),
        (["--anchor", "x", "--relation", "y", "--fanouts", "5"], "--fanouts: for foundation models"),
        (["--anchor", "x", "--relation", "y", "--graph", "facts.tsv"], "--graph: for foundation models"),
    ],
)
def test_options_that_would_do_nothing_are_refused(trained: Path, options: list[str], message: str) -> None:
    result = run_cli("predict", trained, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_predict_warns_of_a_relation_that_was_never_trained(tmp_path: Path) -> None:
    from distkg.training.run import train_on_rank

    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "train.tsv").write_text("a\tr\tb\nb\tr\tc\n")
    (folder / "test.tsv").write_text("c\tnever\ta\n")
    assert run_cli("prepare", folder, "--store", tmp_path / "store").exit_code == 0
    overrides = [f"data.store={tmp_path / 'store'}", "model.dim=4", "train.epochs=1", "train.workers=1"]
    train_on_rank(load_config("preset:demo", overrides), tmp_path / "run", Ranks.single())
    result = run_cli("predict", tmp_path / "run", "--anchor", "c", "--relation", "never", "--json")
    assert result.exit_code == 0
    assert "warning: relation 'never' occurs in no training fact" in result.stderr
    json.loads(result.stdout)
    plan = run_cli("plan", "preset:demo", "--set", f"data.store={tmp_path / 'store'}", "--set", "train.patience=2")
    assert plan.exit_code == 0
    assert "warning: valid holds no triples: nothing is validated" in plan.stdout
    assert "; train.patience will do nothing" in plan.stdout


def test_sources_of_negatives_are_listed_with_what_they_need() -> None:
    text = run_cli("negatives").stdout
    assert re.search(r"typed +Entities of the class.* classes, domain and range +integrate=False", text)
    assert re.search(r"k_hop .*hops=2", text)


def test_negatives_shows_examples_pools_and_cost(store: Path) -> None:
    arguments = ["negatives", store, "--source", "relational", "--options", "{integrate: true}", "--show", "2"]
    text = run_cli(*arguments).stdout
    assert "relational: query" in text
    assert re.search(r"pool: entities to draw from +mean \d", text)
    found = json.loads(run_cli(*arguments, "--count", "3", "--json").stdout)
    assert [len(example["negatives"]) for example in found["examples"]] == [3, 3]
    assert (found["left_out"], found["mean_pool"], found["median_pool"]) == (0, pytest.approx(6.235), 4)


def test_negatives_says_how_many_are_facts(store: Path) -> None:
    """As counted one by one over all queries of both directions."""
    opened = Store.open(str(store))
    entities, relations = (each.to_pylist() for each in (opened.entity_labels(), opened.relation_labels()))
    facts: dict[str, set[tuple[str, str, str]]] = {"train": set(), "held out": set()}
    for split in ("train", "valid", "test"):
        for head, relation, tail in opened.triples(split):
            whole = entities[head], relations[relation], entities[tail]
            facts["train" if split == "train" else "held out"] |= {whole, (whole[2], f"{whole[1]}⁻¹", whole[0])}
    arguments = ["--source", "relational", "--options", "{integrate: true}", "--count", "3", "--json"]
    found = json.loads(run_cli("negatives", store, *arguments, "--show", "5000").stdout)
    drawn = [(query["anchor"], query["relation"], each) for query in found["examples"] for each in query["negatives"]]
    assert len(drawn) == 3 * found["queries"] == 3 * 2 * opened.manifest.triples["train"]
    assert found["known"] == pytest.approx(sum(fact in facts["train"] for fact in drawn) / len(drawn))
    assert found["false"] == pytest.approx(sum(fact in facts["held out"] for fact in drawn) / len(drawn))
    assert found["false"] > 0


def test_negatives_of_a_model_need_its_run(store: Path, trained: Path) -> None:
    result = run_cli("negatives", store, "--source", "near_miss")
    assert result.exit_code == 2
    assert "--run RUN" in result.stderr
    arguments = ["negatives", store, "--source", "near_miss", "--run", trained, "--show", "0", "--json"]
    found = json.loads(run_cli(*arguments).stdout)
    assert found["known"] == 0  # known answers are never near misses
    assert found["mean_pool"] <= 32


def test_export_writes_vectors_and_labels(trained: Path, tmp_path: Path) -> None:
    result = run_cli("export", trained, "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert load_file(tmp_path / "out" / "entities.safetensors")["vectors"].shape == (300, 32)
    assert load_file(tmp_path / "out" / "relations.safetensors")["vectors"].shape == (12, 32)
    assert json.loads((tmp_path / "out" / "model.json").read_text())["scorer"] == "complex"


def test_report_of_a_trained_run(trained: Path) -> None:
    result = run_cli("report", trained)
    assert result.stdout == f"{trained / 'report.html'}\n"
    page = (trained / "report.html").read_text()
    for part in (
        "Loss by epoch",
        "By relation",
        "Where the time goes",
        "Degrees",
        "Rows per worker",
        "affiliated_with",
    ):
        assert part in page


def test_reports_of_several_runs_are_one_page(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "unfinished"
    other.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (other / name).write_bytes((trained / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run_cli("report", trained, other).stdout == "comparison.html\n"
    page = (tmp_path / "comparison.html").read_text()
    for part in ("Comparison of 2 runs", "Validation MRR by wall time", "unfinished: not finished", "are equal"):
        assert part in page
    assert run_cli("report", trained, other, "--to", "pages/two.html").stdout == "pages/two.html\n"
    assert (tmp_path / "pages" / "two.html").read_text() == page


def test_a_report_of_one_run_can_be_written_elsewhere(trained: Path, tmp_path: Path) -> None:
    assert run_cli("report", trained, "--to", tmp_path / "one.html").stdout == f"{tmp_path / 'one.html'}\n"
    assert "By relation" in (tmp_path / "one.html").read_text()


def test_a_folder_among_runs_that_is_none_is_named(trained: Path, tmp_path: Path) -> None:
    result = run_cli("report", trained, tmp_path, "--to", tmp_path / "x.html")
    assert result.exit_code == 2
    assert f"'{tmp_path}' holds no config.yaml" in result.stderr
    assert "give the folder named by `distkg train --run`" in result.stderr
    assert not (tmp_path / "x.html").exists()


@pytest.mark.slow
@pytest.mark.cluster
def test_train_through_ray_ends_with_metrics_and_a_report(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["model.dim=16", "train.epochs=2", f"data.store={store}", "train.batch_size=128"]
    changes = [part for change in small for part in ("--set", change)]
    command = [sys.executable, "-m", "distkg", "train", "preset:demo", "--run", str(run), "--workers", "2", *changes]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"test\s+0\.\d{4}", done.stdout)
    assert f"report: {run / 'report.html'}" in done.stdout
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "result.json", "checkpoints", "report.html"} <= names
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert again.returncode == 2
    assert "--resume" in again.stderr

"""Hub data sets, made on the spot as parquet and JSON lines and loaded through `datasets`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data import hub
from llm.data.config import DataConfig
from llm.data.source import fingerprint, kind_of_source, load
from llm.data.tokenize import load_tokenizer
from llm.errors import InputError
from tests.llm.conftest import make_rows, write_lines

SFT, PFT = "vwxyzjn/summarize_from_feedback_tldr_3_filtered", "openai/summarize_from_feedback"
POSTS, PREFERENCES, COMPARISONS = make_rows(30)
LIMITS = DataConfig(n_test=4)
NEWS = [({"chosen": " a", "rejected": " b"}, title) for title in ("None", "War: POST: and peace")]
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def prompt_of(row: dict[str, Any]) -> str:
    head = f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}"
    return f"{head}\n\nPOST: {row['post']}\n\nTL;DR:"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Local folders that stand for hub names; `datasets` caches below tmp_path."""
    import datasets

    made: dict[str, Path] = {}
    monkeypatch.setattr(hub, "location", lambda name: str(made[name]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def parquet(name: str, **splits: list[dict[str, Any]]) -> None:
        made[name] = tmp_path / name.replace("/", "--")
        for split, rows in splits.items():
            file = made[name] / f"{split}.parquet"
            if name in hub.EXPORTS:  # as the hub lays out its parquet exports
                file = made[name] / "comparisons" / split / "0000.parquet"
                other = made[name] / "axis" / split / "0000.parquet"
                other.parent.mkdir(parents=True)
                pq.write_table(pa.table({"unrelated": [1]}), other)
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), file)

    parquet(SFT, train=POSTS[:20], validation=POSTS[20:24], test=POSTS[24:])
    comparisons = [{k: v for k, v in row.items() if k != "split"} for row in COMPARISONS]
    parquet(PFT, train=comparisons[30:75], validation=comparisons[:15])  # posts 10-24 and 0-4
    made["trl-lib/tldr"] = tmp_path / "trl"
    rows = [{"prompt": prompt_of(row), "completion": " " + row["summary"]} for row in POSTS]
    write_lines(made["trl-lib/tldr"] / "train.jsonl", rows[:20])
    write_lines(made["trl-lib/tldr"] / "test.jsonl", rows[25:])
    pairs = [
        {"prompt": prompt_of(r), "chosen": " " + r["chosen"], "rejected": " " + r["rejected"]}
        for r in PREFERENCES
    ]
    news = [{**row, "prompt": f"TITLE: {title}\n\nA man\nsaid.\n\nTL;DR:"} for row, title in NEWS]
    blank = {**pairs[0], "rejected": " "}
    parquet(
        "trl-lib/tldr-preference", train=[*pairs[:60], blank], validation=[*pairs[60:75], *news]
    )
    parquet("owner/strange", train=[{"text": "x"}])
    parquet("owner/bad", train=[*pairs[:2], {**pairs[2], "prompt": "Summarise!"}])
    return made


def test_two_names_keep_their_official_splits(folders: dict, small_tokenizer: Any) -> None:
    source = f"{SFT},{PFT}"
    assert kind_of_source(source) == "hub"
    assert fingerprint(source) != fingerprint(SFT)
    data = load(source, tokenizer=small_tokenizer, limits=LIMITS, seed=0)
    numbers = [{int(e.post_id.split("|")[0][5:]) for e in part} for part in (data.sft, data.pairs)]
    assert numbers[0] == set(range(20))  # posts 0-4 have validation comparisons: counted below
    assert numbers[1] == set(range(10, 25))  # post 24 is a test post
    assert len(data.test) == 4
    assert data.card["split"]["kind"] == "official"
    shared = {"train & validation": 5, "train & test": 1, "validation & test": 0}
    assert data.card["split"]["shared_posts"] == shared
    assert data.card["overlap"] == {f"{PFT} & {SFT}": 20}
    assert [s["records"] for s in data.card["sources"]] == [20, 4, 6, 45, 15]
    assert data.card["sources"][0]["split"] == "train"


def test_prompt_columns_give_the_same_examples(folders: dict, small_tokenizer: Any) -> None:
    data = load(
        "trl-lib/tldr, trl-lib/tldr-preference",
        tokenizer=small_tokenizer,
        limits=LIMITS,
        seed=0,
    )
    prompts = {prompt_of(row) for row in POSTS}
    assert {e.prompt for e in (*data.sft, *data.pairs, *data.test)} <= prompts
    assert all(not text.startswith(" ") for e in data.pairs for text in e.completions)
    assert len(data.sft) == 20
    assert len(data.pairs) == 60
    overlap = data.card["overlap"]
    assert overlap == {"trl-lib/tldr & trl-lib/tldr-preference": 20}
    assert data.card["dropped"] == {"cnndm rows": 2, "rows with an empty text": 1}


def test_bad_hub_data_is_named(folders: dict, small_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no known format has the columns text"):
        load("owner/strange", tokenizer=small_tokenizer, limits=LIMITS, seed=0)
    with pytest.raises(InputError, match="owner/bad, split train, row 2: prompt is not"):
        load("owner/bad", tokenizer=small_tokenizer, limits=LIMITS, seed=0)


def test_news_rows_of_the_comparisons_are_dropped(folders: dict, small_tokenizer: Any) -> None:
    """As the export holds them: batch "batch0_cnndm", an article and nothing of a post."""
    info = {"id": "x", "post": None, "title": "War", "subreddit": None, "article": "A man said."}
    for split in ("train", "validation"):
        file = folders[PFT] / "comparisons" / split / "0000.parquet"
        table = pq.read_table(file)
        text = {name: pa.string() for name in info}
        types = dict(zip(table.column_names, table.schema.types, strict=True))
        types["info"] = pa.struct(list(text.items()))
        rows = [{**row, "info": {**row["info"], "article": None}} for row in table.to_pylist()]
        rows += [{**rows[0], "info": info, "batch": "batch0_cnndm"}] * (split == "validation")
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), file)
    data = load(f"{SFT},{PFT}", tokenizer=small_tokenizer, limits=LIMITS, seed=0)
    assert len(data.validation_pairs) == 15
    assert data.card["dropped"] == {"cnndm rows": 1}


def test_an_unknown_commit_is_said(folders: dict, small_tokenizer: Any) -> None:
    data = load(f"{SFT},{PFT}", tokenizer=small_tokenizer, limits=LIMITS, seed=0)
    said = [note for note in data.card["notes"] if "commit is not known" in note]
    assert [note.split(":")[0] for note in said] == [PFT, SFT]


# --- commits -------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and nobody to ask; the folder holds "hub" and "datasets"."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    hub.revision_of.cache_clear()
    return tmp_path


def ref(root: Path, repository: str, revision: str, commit: str) -> None:
    file = root / "hub" / repository / "refs" / revision
    file.parent.mkdir(parents=True)
    file.write_text(commit, encoding="utf-8")


def test_a_commit_comes_from_the_cache_where_nobody_can_be_asked(offline: Path) -> None:
    ref(offline, "models--EleutherAI--pythia-1.4b-deduped", "main", COMMIT)
    ref(offline, f"datasets--{PFT.replace('/', '--')}", "refs/convert/parquet", OTHER)
    assert hub.revision_of("EleutherAI/pythia-1.4b-deduped", "model") == COMMIT
    assert hub.revision_of("EleutherAI/pythia-1.4b-deduped", "model", "step1000") is None
    assert hub.revision_of("EleutherAI/pythia-1.4b-deduped", "dataset") is None
    assert hub.data_revision(PFT) == OTHER
    assert hub.revision_of("owner/name", "model", COMMIT) == COMMIT
    assert hub.revision_of("no name", "model") is None


def test_a_prepared_data_set_names_its_commit(offline: Path) -> None:
    assert hub.data_revision(SFT) is None
    hub.revision_of.cache_clear()
    below = offline / "datasets" / SFT.replace("/", "___") / "default" / "0.0.0"
    (below / COMMIT).mkdir(parents=True)
    (below / "not-a-commit").mkdir()
    assert hub.data_revision(SFT) == COMMIT


def test_the_address_follows_the_commit(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = set()
    for commit in (COMMIT, OTHER, None):
        monkeypatch.setattr(hub, "revision_of", lambda *_, commit=commit: commit)
        addresses |= {fingerprint(SFT), fingerprint(f"{SFT},{PFT}")}
    assert len(addresses) == 6


def test_the_hub_is_asked_once_for_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    class Api:
        def repo_info(self, name: str, **options: Any) -> Any:
            asked.append((name, options["repo_type"], options["revision"]))
            return huggingface_hub.hf_api.ModelInfo(id=name, sha=COMMIT)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hub.revision_of.cache_clear()
    for _ in range(2):
        assert hub.data_revision(PFT) == COMMIT
        assert hub.revision_of("owner/model", "model") == COMMIT
    assert asked == [(PFT, "dataset", "refs/convert/parquet"), ("owner/model", "model", None)]
    hub.revision_of.cache_clear()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub at an address where nothing listens."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    api = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", api)


def test_an_unreachable_hub_is_one_clear_error_at_once(no_hub: None) -> None:
    with pytest.raises(InputError, match=r"dataset 'nobody/nothing' is no path here, and the hub"):
        hub.read_hub(("nobody/nothing",))
    with pytest.raises(InputError, match=r"model 'nobody/nothing' is no path here, and the hub"):
        load_tokenizer("nobody/nothing")


def test_offline_without_a_cache_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing' cannot be loaded"):
        hub.read_hub(("nobody/nothing",))


@pytest.mark.parametrize("source", ["a/b/c", "../x/y", "plain", "a/b,", "a b/c", "x/y,plain"])
def test_what_is_no_hub_name(source: str) -> None:
    assert hub.hub_names(source) is None
    with pytest.raises(InputError, match="no such path"):
        kind_of_source(source)

"""Removing: through the trash, never the last good copy, and always to be taken back."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.errors import DamagedStateError, LastCopyError, OperationError
from guardrails.filesystem import remove_tree
from guardrails.manifest import KnownHashes
from guardrails.paths import Paths
from guardrails.state_io import read_json, write_json
from guardrails.store.backups import list_backup_ids
from guardrails.store.change import open_store, say_nothing
from guardrails.store.copies import Copies
from guardrails.store.live_model import restore, rollback, save_version
from guardrails.store.model_backups import back_up
from guardrails.store.removal import (
    Decision,
    bring_back,
    clean_up_backups,
    delete_version,
    empty_trash,
    prune,
    set_pinned,
)
from guardrails.store.repair import verify_version
from guardrails.store.retention import Policy, choose, parse_duration
from guardrails.store.trash import list_entries
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata
from tests.store import WEIGHTS, flip, make_store, overwrite, weights_of


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return make_store(tmp_path / "base", versions=3, backups=True)


def delete(paths: Paths, version: str) -> None:
    with open_store(paths, "test"):
        delete_version(paths, version, Copies(paths, strict=True), "deleted")


def kept(paths: Paths) -> list[str]:
    return [version for version in list_version_ids(paths) if is_kept(paths, version)]


def age_backups(paths: Paths, days: int) -> None:
    for backup_id in list_backup_ids(paths.backups):
        path = paths.backups / backup_id / "metadata.json"
        at = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
        write_json(path, {**(read_json(path) or {}), "created_at": at})


def test_a_deleted_version_lies_in_the_trash_and_its_metadata_stays(paths: Paths) -> None:
    weights = weights_of(paths.version("v001") / "model")
    delete(paths, "v001")
    assert kept(paths) == ["v002", "v003"]
    assert read_metadata(paths, "v001")["removed_at"]
    (entry,) = list_entries(paths.trash)
    assert weights_of(entry.content) == weights
    assert entry.record is not None
    assert (entry.record["kind"], entry.record["name"]) == ("version", "v001")


def test_a_deletion_is_undone_with_the_same_bytes_read_only(paths: Paths) -> None:
    delete(paths, "v001")
    with open_store(paths, "test"):
        assert bring_back(paths, "v001") == "the trash"
    assert verify_version(paths, "v001", KnownHashes()) == []
    assert "removed_at" not in read_metadata(paths, "v001")
    assert (paths.version("v001") / "model").stat().st_mode & 0o777 == 0o555
    assert list_entries(paths.trash) == []


def test_a_version_that_the_trash_lost_comes_back_from_its_backup(paths: Paths) -> None:
    delete(paths, "v001")
    (entry,) = list_entries(paths.trash)
    flip(entry.content / WEIGHTS)
    with open_store(paths, "test"):
        assert bring_back(paths, "v001") == "b001"
    assert verify_version(paths, "v001", KnownHashes()) == []


def test_restoring_a_deleted_version_brings_it_back_first(paths: Paths) -> None:
    weights = weights_of(paths.version("v001") / "model")
    delete(paths, "v001")
    restore(paths, "v001", say_nothing)
    assert weights_of(paths.current_model) == weights
    assert is_kept(paths, "v001")


def test_rolling_back_where_every_ancestor_was_deleted_takes_the_parent_from_the_trash(paths: Paths) -> None:
    delete(paths, "v001")
    delete(paths, "v002")
    assert rollback(paths, say_nothing).version == "v002"


def test_the_last_good_copy_is_never_deleted(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", versions=2)
    with pytest.raises(LastCopyError, match="v001 is the last good copy"):
        delete(paths, "v001")
    back_up(paths, paths.version("v001"), "pre_deletion", None)
    flip(paths.backups / "b001" / "model" / WEIGHTS)
    with pytest.raises(LastCopyError):
        delete(paths, "v001")
    assert kept(paths) == ["v001", "v002"]
    assert "removed_at" not in read_metadata(paths, "v001")


def test_what_is_pinned_or_needed_is_not_deleted(paths: Paths) -> None:
    with open_store(paths, "test"):
        assert set_pinned(paths, "v001", True)
        assert not set_pinned(paths, "v001", True)
    for version, why in (("v001", "pinned"), ("v003", "current_model/ is this version")):
        with pytest.raises(OperationError, match=why):
            delete(paths, version)
    with open_store(paths, "test"):
        set_pinned(paths, "v001", False)
    delete(paths, "v001")


def test_nothing_is_removed_while_any_metadata_is_unreadable(paths: Paths) -> None:
    (paths.backups / "b003" / "metadata.json").write_text("{")
    for removal in (
        lambda: delete(paths, "v001"),
        lambda: prune(paths, Policy(last=1), execute=True),
        lambda: clean_up_backups(paths, 0, execute=True),
        lambda: empty_trash(paths, 0, execute=True),
    ):
        with pytest.raises(DamagedStateError):
            removal()
    assert kept(paths) == ["v001", "v002", "v003"]


def test_prune_does_what_its_dry_run_said(paths: Paths) -> None:
    with open_store(paths, "test"):
        set_pinned(paths, "v001", True)
        said = prune(paths, Policy(last=1), execute=False)
        assert kept(paths) == ["v001", "v002", "v003"]
        assert prune(paths, Policy(last=1), execute=True) == said
    assert [(one.id, one.removed) for one in said] == [("v001", False), ("v002", True), ("v003", False)]
    assert kept(paths) == ["v001", "v003"]


def test_prune_keeps_the_last_good_copy_of_shared_and_of_own_files(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", versions=3)
    with open_store(paths, "test"):
        decisions = prune(paths, Policy(last=1), execute=True)
    assert [one.reason for one in decisions[:2]] == ["it is the last good copy"] * 2
    assert kept(paths) == ["v001", "v002", "v003"]


def test_cleanup_keeps_the_newest_good_backup_and_every_last_copy(paths: Paths) -> None:
    age_backups(paths, 40)
    flip(paths.version("v001") / "model" / WEIGHTS)
    with open_store(paths, "test"):
        decisions = clean_up_backups(paths, 30, execute=True)
    assert [(one.id, one.removed) for one in decisions] == [("b001", False), ("b002", True), ("b003", False)]
    assert list_backup_ids(paths.backups) == ["b001", "b003"]
    (entry,) = list_entries(paths.trash)
    assert (entry.content / "model" / WEIGHTS).exists()


def test_cleanup_takes_nothing_that_is_young(paths: Paths) -> None:
    with open_store(paths, "test"):
        assert not any(one.removed for one in clean_up_backups(paths, 1, execute=True))


def test_backups_on_another_disk_have_their_trash_beside_them(paths: Paths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    paths.backups.rename(elsewhere)
    paths.config.write_text(paths.config.read_text().replace('"backup_dir": null', f'"backup_dir": "{elsewhere}"'))
    age_backups(Paths(paths.base), 0)
    with open_store(paths, "test"):
        assert any(one.removed for one in clean_up_backups(paths, 0, execute=True))
    assert len(list_entries(elsewhere / ".trash")) == 2


def empty(paths: Paths, days: float) -> list[Decision]:
    with open_store(paths, "test"):
        return empty_trash(paths, days, execute=True)


def test_the_trash_gives_up_no_last_copy_and_nothing_young(paths: Paths) -> None:
    delete(paths, "v001")
    assert [one.removed for one in empty(paths, 7)] == [False]
    remove_tree(paths.backups / "b001")
    (refused,) = empty(paths, 0)
    assert refused.reason.startswith("the last good copy")
    back_up(paths, list_entries(paths.trash)[0].content, "manual", None)
    assert [one.removed for one in empty(paths, 0)] == [True]
    assert list_entries(paths.trash) == []


def test_a_version_pruned_between_kept_ones_can_be_made_current_again(paths: Paths) -> None:
    with open_store(paths, "test"):
        prune(paths, Policy(last=1), execute=True)
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    with open_store(paths, "test"):
        assert save_version(paths, "mine", "manual") == ("v004", True)
    restore(paths, "v002", say_nothing)
    assert kept(paths) == ["v002", "v003", "v004"]


NEWEST = datetime(2026, 11, 21, 12, tzinfo=UTC)


def daily(count: int) -> list[tuple[str, datetime]]:
    return [(f"d{age}", NEWEST - timedelta(days=age)) for age in range(count)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(last=2), {"d0", "d1"}),
        (Policy(daily=3), {"d0", "d1", "d2"}),
        (Policy(weekly=2), {"d0", "d6"}),  # the 21st is a Saturday, the 15th the Sunday of the week before
        (Policy(monthly=2), {"d0", "d21"}),
        (Policy(yearly=2), {"d0", "d325"}),
        (Policy(within="2d"), {"d0", "d1"}),
        (Policy(last=-1), {f"d{age}" for age in range(400)}),
        (Policy(last=1, monthly=3), {"d0", "d21", "d52"}),
    ],
)
def test_the_words_mean_what_they_mean_in_restic(policy: Policy, expected: set[str]) -> None:
    assert set(choose(daily(400), policy)) == expected


def test_of_a_period_the_newest_is_kept() -> None:
    hours = [(f"h{age}", NEWEST - timedelta(minutes=20 * age)) for age in range(12)]
    assert set(choose(hours, Policy(hourly=2))) == {"h0", "h1"}
    assert set(choose(hours, Policy(daily=5))) == {"h0"}


@pytest.mark.parametrize(
    ("text", "days"), [("1y", 365.0), ("2m", 60.0), ("7d", 7.0), ("12h", 0.5), ("1y5m7d2h", 522 + 2 / 24)]
)
def test_durations(text: str, days: float) -> None:
    assert parse_duration(text) == timedelta(days=days)


@pytest.mark.parametrize("text", ["", "7", "d", "7d1y", "-7d", "1w"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=40, unique=True),
    st.builds(Policy, *(st.integers(-1, 6) for _ in range(6)), within=st.none()),
)
def test_more_to_keep_never_keeps_less_and_the_newest_always_stays(hours: list[int], policy: Policy) -> None:
    made = [(str(hour), NEWEST - timedelta(hours=hour)) for hour in hours]
    chosen = set(choose(made, policy))
    if not policy.keeps_nothing():
        assert str(min(hours)) in chosen
    for word in Policy._fields[:-1]:
        more = Policy(**{**policy._asdict(), word: getattr(policy, word) + 1 if getattr(policy, word) >= 0 else -1})
        assert chosen <= set(choose(made, more))

"""What each finding of the report means, why it matters and what to do: plain data, one entry a finding.

The table in docs/STATE_TRACKER_GUIDE.md is made of this, and ``state_tracker.py --explain`` prints it. Commands are
for the folder of the scripts; a finding that stands has its own, for its own base dir.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from guardrails.errors import UsageError


class Explanation(NamedTuple):
    """What is known of a finding whether it stands or not. What helps may hold Markdown's backticks."""

    # What follows a colon differs from finding to finding: version-damaged:vNNN
    id: str
    # None: depends on what it is about
    category: str | None
    severity: str
    # as it may read
    message: str
    meaning: str
    why: str
    remedy: str
    # another severity, and when it has that: 'info with `backup: "off"`'
    otherwise: str = ""

    @property
    def family(self) -> str:
        """The id without what follows the colon."""
        return self.id.partition(":")[0]

    @property
    def severities(self) -> set[str]:
        return {self.severity, self.otherwise.partition(" ")[0]} - {""}


ANOTHER_DISK = "`python3 training_controller.py config set backup_dir /path/on/another/disk`"
BACK_UP = "`python3 backup_manager.py backup current_model/`"
FREE_SPACE = "see what takes it: `du -xhd2 . | sort -h`"
REPAIR = "`python3 model_versioner.py repair`"
HEAL_BACKUP = (
    f"{REPAIR} heals it from the version; where nothing else has those bytes, all that is left is to move it away:"
    " `mv models/backups/bNNN models/backups/bNNN.damaged`"
)

EXPLANATIONS = (
    # model
    Explanation(
        "model-fresh-start",
        "model",
        "info",
        "No current model - fresh start",
        "There is no `current_model/`, and none is expected: nothing was trained yet, or everything was rolled back.",
        "The next file trains a new adapter from the base model.",
        "nothing is wrong: start `python3 training_daemon.py` and drop a file into `inbox/`; with versions,"
        " `python3 model_versioner.py restore V`",
    ),
    Explanation(
        "model-no-adapter",
        "model",
        "info",
        "No adapter found - base model only",
        "`current_model/` is there, without an adapter that loads: `adapter_config.json` or the weights are not in it.",
        "After a consolidation that is as it should be, since the base model holds what was trained. At any other time"
        " the model would answer as if nothing had been trained.",
        "expected after a consolidation; else `python3 model_versioner.py list`, then one of them:"
        " `python3 model_versioner.py restore V`",
    ),
    Explanation(
        "model-missing",
        "model",
        "critical",
        "current_model/ is missing (or: is empty); it was v003",
        "Something other than this toolkit deleted or moved the folder, or all in it; which version it was is"
        " remembered.",
        "Nothing can train or use the model until it is back. The version itself is a copy of its own.",
        "`python3 model_versioner.py restore v003`; where that version is gone as well, before it"
        " `python3 model_versioner.py repair v003`",
    ),
    Explanation(
        "model-changed",
        "model",
        "warning",
        "current_model/ was changed (or: may have changed) since it was saved as v003: adapter_config.json was touched",
        "Names, sizes, time stamps or inodes in `current_model/` are not those that it was saved with. With `may have"
        " changed` only stamps differ, as after a copy of the base dir.",
        "The next file trains on what lies there now, and the change exists nowhere else yet.",
        "`python3 model_versioner.py create` saves it as it is, or finds that its bytes are the same; `python3"
        " model_versioner.py rollback --by-hand` takes the change back, as it has to where a file is torn. A link or a"
        " pipe in it, which the fix command lists, has to go first: put the file there that it stands for",
    ),
    Explanation(
        "model-unsaved",
        "model",
        "warning",
        "current_model/ is no saved version",
        "There are versions, but `current_model/` is none of them, or the one that it was has been removed.",
        "It is the only copy of itself: a deletion or a bad disk would take it.",
        "`python3 model_versioner.py create`; where a file of it is torn, `python3 model_versioner.py rollback"
        " --by-hand`",
    ),
    Explanation(
        "change-under-way",
        "model",
        "info",
        "a restore of current_model/ is under way: process 4242 (…)",
        "A living process, or the daemon, is exchanging `current_model/` for another version, or checks it after that.",
        "What is read meanwhile may be of before or after, and the daemon trains nothing until it is done.",
        "wait",
    ),
    Explanation(
        "change-interrupted",
        "model",
        "warning",
        "a restore of current_model/ was interrupted; nothing trains until it is finished",
        "The process that was at work on `current_model/` was killed between two steps. Its intent record stands, so"
        " each step can still be finished or undone.",
        "The daemon does not train while it stands.",
        "`python3 model_versioner.py create` finishes it first, as every writing command does",
    ),
    Explanation(
        "model-bytes-damaged",
        "model",
        "critical",
        "bytes of current_model/ are not those of v003: adapter_model.safetensors has other bytes than were saved; …",
        "The last deep check read other bytes than the version has, under time stamps that say nothing was changed: a"
        " bad disk, or somebody who put the stamps back.",
        "What uses the model gets the damaged bytes. The next run does not: it starts from the version.",
        "a `touch` of the files, so that the change shows, then `python3 model_versioner.py rollback --by-hand`",
    ),
    Explanation(
        "model-adapter-broken",
        "model",
        "critical",
        "the adapter in current_model/ cannot be loaded: adapter_model.safetensors is damaged: …",
        "In the last deep check its settings, the shapes of its weights or the numbers in them were not those of a LoRA"
        " adapter of this base model: torn, NaN, or of another model.",
        "PEFT would refuse it, or answer with nonsense.",
        "`python3 model_versioner.py rollback`, or `restore` of a version that loads",
    ),
    # config
    Explanation(
        "config-missing",
        "config",
        "critical",
        "Config file missing!",
        "There is no `config.json` in the base dir, or this is no base dir.",
        "Nothing can be trained without it, and a new one may differ in what decides the result.",
        "put your own copy back, or make a new one: `python3 training_daemon.py --init`",
    ),
    Explanation(
        "config-unreadable",
        "config",
        "critical",
        "Error reading config: …",
        "`config.json` is there and cannot be used: it is no JSON, has a key twice, or a value of a wrong type.",
        "The daemon refuses to train with it (exit 10), and locked values cannot be checked.",
        "`python3 training_controller.py config check` names the place or the key; correct it",
    ),
    Explanation(
        "config-no-base-model",
        "config",
        "warning",
        "base_model is not set: nothing can be trained",
        "`base_model` in `config.json` is null, as in a new base dir.",
        "Pre-flight refuses every file until one is chosen.",
        "`python3 training_controller.py config set base_model /path/to/model`",
    ),
    Explanation(
        "config-lock-changed:KEY",
        "config",
        "critical",
        "locked max_length was changed from 2048 to 4096; a person may accept it: python3 training_controller.py config"
        " approve",
        "A value in `config.json` is not the one that was locked when the first file was trained.",
        "Training on with it would mix two settings in one adapter; weeks were lost that way. The daemon stops (11).",
        "`python3 training_controller.py config set max_length 2048`; to keep the new value, a person runs"
        " `python3 training_controller.py config approve`",
    ),
    Explanation(
        "config-lock-missing",
        "config",
        "warning",
        ".config_lock.json is missing; what v003 was trained with holds",
        "The lock file was removed after files were trained.",
        "Whoever removed it may have wanted to get past it. What the current version was trained with counts as locked"
        " meanwhile.",
        "`python3 training_controller.py config set max_length 2048` takes it anew",
    ),
    Explanation(
        "base-model-missing",
        "config",
        "critical",
        "base model is missing: /path/to/model holds no model",
        "The folder that `base_model` names is not there, or holds no `config.json` of a model.",
        "An adapter is of no use without its base model. This toolkit fingerprints the base model and keeps no copy.",
        "mount its disk, or correct the path; `python3 training_controller.py config check`",
    ),
    Explanation(
        "base-model-changed",
        "config",
        "critical",
        "base model in /path/to/model is not the locked one: model.safetensors has other bytes",
        "Files of the base model are missing, new, of another size or known to have other bytes than the locked ones.",
        "The adapter was trained on the old one; on another model it gives nonsense, without an error.",
        "put the locked one back; to keep the new one, a person runs `python3 training_controller.py config approve`",
    ),
    Explanation(
        "base-model-touched",
        "config",
        "warning",
        "base model in /path/to/model may have changed: model.safetensors was touched; …",
        "Time stamps or inodes of the base model's files are new, sizes are as they were: a copy, a `touch`, or another"
        " model of the same size.",
        "Only its bytes tell. The next pre-flight reads them, and stops if they differ.",
        "`python3 training_controller.py config check` reads it again; if that finds nothing,"
        " `rm status/base_model_stat.json` forgets the old stamps",
    ),
    Explanation(
        "guard-layer-off:LAYER",
        "config",
        "warning",
        "claude-hook was on and is off: …",
        "A layer of protection was seen at work here and no longer can be: an agent's hook, its sandbox, bubblewrap, or"
        " the read-only modes of versions.",
        "What it stopped is not stopped any more, and whoever works here may count on it.",
        "`python3 training_controller.py doctor --repair`, which names what is left for you, as"
        " `apt install bubblewrap`; for `read-only` `python3 model_versioner.py repair v003`;"
        " if it is meant, delete `status/protections.json`",
    ),
    Explanation(
        "guard-healed",
        "config",
        "info",
        "the guard found at 2026-11-21T10:00:00Z: max_length in config.json was 2048 and became 4096, …: put back to"
        " 2048. Undo: …",
        "In the last day the agent guard noticed a change of what is protected and put it right, or could not.",
        "It may have been an accident of an agent, or something that you meant.",
        "nothing is wrong any more, unless it says so; `tail logs/guard.jsonl` shows all of it. Said for a day",
    ),
    Explanation(
        "base-model-bytes-changed",
        "config",
        "critical",
        "bytes of the base model are not the locked ones: model.safetensors in /path/to/model has other bytes than were"
        " locked; …",
        "The last deep check hashed every byte of the base model. Sizes, and perhaps time stamps, are as they were.",
        "The adapter was trained on the old bytes; on others it gives nonsense, without an error.",
        "put a good copy of the locked one back; `rm status/base_model_stat.json` makes every pre-flight read it anew",
    ),
    Explanation(
        "config-lock-unapproved",
        "config",
        "critical",
        ".config_lock.json is not as it was last approved: it holds max_length 4096, on record is 2048",
        "The lock holds a value or a fingerprint that no recorded approval gave it, as when somebody edited it together"
        " with `config.json`.",
        "The lock would let a run pass that mixes two settings, or two base models, in one adapter.",
        "`python3 training_controller.py config check` lists the approvals; put the lock's old text back, or set the"
        " value on record as a person: `python3 training_controller.py config set KEY VALUE`",
    ),
    # daemon
    Explanation(
        "daemon-not-running",
        "daemon",
        "warning",
        "Training daemon not running (model exists with training progress)",
        "Nobody holds the daemon's lock of this base dir, and the model was trained before.",
        "Nothing that is dropped into `inbox/` is trained.",
        "`python3 training_daemon.py`",
    ),
    Explanation(
        "daemon-died",
        "daemon",
        "critical",
        "Training daemon died while at work on math.jsonl; its next start carries it on",
        "A data file is in `queue/processing/`, no daemon lives, and the last one said no goodbye: it was killed, or"
        " the machine went down.",
        "Training stands still. At most the steps since the last checkpoint are trained again.",
        "`python3 training_daemon.py`",
    ),
    Explanation(
        "daemon-failed",
        "daemon",
        "warning",
        "Training daemon ended with an error: …",
        "The last daemon stopped by itself and said why.",
        "It would end the same way again until the cause is gone.",
        "remove the cause, then `python3 training_daemon.py`",
    ),
    Explanation(
        "daemon-stop-file",
        "daemon",
        "warning",
        "the emergency stop lies in the base dir: as long as it does, the daemon does not start",
        "Somebody made the file `.stop`, which ends the daemon and keeps it from starting.",
        "No file is trained, and no start of the daemon lasts.",
        "`rm .stop`, when its reason is gone",
    ),
    Explanation(
        "queue-held",
        "daemon",
        "warning",
        "Queue held: …",
        "The daemon lives and takes no new file, for the reason that it names: a backup that failed, say.",
        "Files wait. It tries again by itself, but the cause may need a person.",
        "remove the cause; `python3 training_controller.py resume` tries at once",
    ),
    Explanation(
        "queue-failed",
        "daemon",
        "warning",
        "2 data files failed to train",
        "Data files are in `queue/failed/`: bad rows, or as many attempts as `max_attempts` allows.",
        "They are not in the model, and nothing trains them again by itself.",
        "`python3 training_queue.py list` says why; then `retry NAME` or `remove NAME`",
    ),
    Explanation(
        "clock-moved-back",
        "daemon",
        "warning",
        "the clock moved back: the last report or version is of 2026-11-21T10:00:00Z",
        "The clock is more than a minute behind the last report or the newest version.",
        "What goes by time is not to be trusted: ages, daily backups, what `prune` keeps.",
        "`date -u +%Y-%m-%dT%H:%M:%SZ` shows what it says now; set it right (`timedatectl set-ntp true`). If it is"
        " right, and was ahead before, this goes when that time has come",
    ),
    Explanation(
        "queue-file-missing",
        "daemon",
        "warning",
        "data files of the queue are gone: math.jsonl of queue/normal/",
        "There is a record of a data file, and no such file in any folder of the queue. No command deletes one.",
        "What waited will not be trained; what was trained can be neither looked at nor trained again.",
        "put the file back; if it is meant to be gone, remove its record, too: `rm queue/.records/NAME.json`",
        "info where all of them were completed, failed or skipped",
    ),
    Explanation(
        "queue-record-missing",
        "daemon",
        "warning",
        "data files have no record that can be read: math.jsonl in queue/completed/",
        "A data file lies where only a command puts one, and its record is missing or damaged.",
        "Which run and version it went into, and whether its bytes are still those, is not known any more.",
        "a damaged record is moved away first: `mv queue/.records/NAME.json queue/.records/NAME.json.damaged`."
        " `python3 training_queue.py list` shows the file; moved into `inbox/` it is taken as new, a duplicate set"
        " aside",
    ),
    Explanation(
        "queue-data-changed",
        "daemon",
        "warning",
        "completed data files are not what was trained: math.jsonl; read at 2026-11-21T10:00:00Z",
        "The last deep check read other bytes, or another size, than the run that trained the file.",
        "The model is not touched by that, but the file no longer tells what the model learned.",
        "put the original back if there is one, and let `python3 state_tracker.py --deep` read it; the changed file can"
        " be trained when it is put into `inbox/`",
    ),
    Explanation(
        "queue-version-mismatch",
        "daemon",
        "warning",
        "queue and versions do not agree: math.jsonl is completed as v003, which was trained on chats.jsonl",
        "What a record says of a data file and what a version says of its data exclude each other.",
        "A file may be trained twice, or never. One of the two was edited, or comes from another base dir.",
        "`python3 training_queue.py history NAME` and `python3 model_versioner.py lineage V` show both sides; put the"
        " wrong one right, as a rule the record, with an editor: `queue/.records/NAME.json`",
    ),
    # disk
    Explanation(
        "disk-low",
        "disk",
        "critical",
        "LOW DISK SPACE: Only 8GB free!",
        "Less than 10 GiB are free for you on the file system of the base dir.",
        "A run, a version or a backup may not fit. A full disk loses nothing, but nothing goes on either.",
        FREE_SPACE,
    ),
    Explanation(
        "disk-getting-low",
        "disk",
        "warning",
        "Disk space getting low: 45GB free",
        "Less than 50 GiB are free for you on the file system of the base dir.",
        "Every file adds a version and a backup; there is still time to choose what may go.",
        FREE_SPACE,
    ),
    Explanation(
        "state-file-damaged",
        "disk",
        "warning",
        ".system_state.json was damaged; it was set aside as .system_state.json.damaged and written anew",
        "The report found its own state file torn, of a newer toolkit, or not its own.",
        "Nothing is lost but since when each finding stands. A torn file may be the first sign of a bad disk.",
        "look at it, then `rm .system_state.json.damaged`",
    ),
    Explanation(
        "state-file-unwritable",
        "disk",
        "warning",
        ".system_state.json could not be written: No space left on device",
        "The report is right and could not be saved.",
        "Who reads the file instead of running the report sees an old state.",
        "free some space, or mend the permissions",
        "info in an agent's sandbox",
    ),
    Explanation(
        "history-damaged",
        "disk",
        "warning",
        "status/state_history.db was damaged; it was set aside as state_history.db.damaged and begun anew",
        "The history of the report was torn, or no database of this toolkit.",
        "What was before is not listed any more; models and versions are not touched by that. It may be the first sign"
        " of a bad disk.",
        "look at it (`sqlite3 status/state_history.db.damaged .dump`), then `rm status/state_history.db.damaged*`",
    ),
    Explanation(
        "history-unwritable",
        "disk",
        "warning",
        "status/state_history.db could not be written: database or disk is full",
        "The report is right, and its row is missing in the history.",
        "What changes meanwhile is not on record. The next report that can writes a row for all of it.",
        "free some space, or mend the permissions; of a newer toolkit: update this one",
        "info in an agent's sandbox, and while another process holds it",
    ),
    Explanation(
        "file-unreadable:PATH",
        None,
        "critical",
        "cannot read …, or … is damaged",
        "A state file or folder is there and cannot be read, is torn, or was written by a newer toolkit.",
        "Damaged is never taken for fresh, so commands that need it refuse (exit 30) instead of guessing.",
        "damaged: docs/recovery.md says what the file held; then `mv PATH PATH.damaged`. Not readable: mend the"
        " permissions or the disk, `ls -ld PATH`. Of a newer toolkit: update this one. Nothing is overwritten"
        " meanwhile",
    ),
    # backup
    Explanation(
        "backup-no-versions",
        "backup",
        "warning",
        "Current model exists but no versions saved - create backup!",
        "There is a model and not one version of it.",
        "It is the only copy of itself, and no training on it can be undone.",
        "`python3 model_versioner.py create`",
    ),
    Explanation(
        "version-damaged:vNNN",
        "backup",
        "critical",
        "version v002 is damaged: metadata.json is missing",
        "Names or sizes of a version's files are not as its metadata say, or the metadata cannot be read. The bytes are"
        " not looked at here; `python3 model_versioner.py verify` does that.",
        "It cannot be restored as it is, and nothing is removed anywhere while its metadata are unknown.",
        REPAIR,
    ),
    Explanation(
        "backup-damaged:bNNN",
        "backup",
        "warning",
        "backup b002 is damaged: …",
        "Names or sizes of a backup's files are not as recorded, or its record cannot be read.",
        "It does not count as a second copy any more.",
        HEAL_BACKUP,
    ),
    Explanation(
        "backup-missing",
        "backup",
        "warning",
        "second copy is missing: v003 has no backup",
        "The current version has no backup that was read back and found good, and neither has any other.",
        "One bad sector in it, and there is nothing to heal it from.",
        BACK_UP,
        'info with `backup: "off"`',
    ),
    Explanation(
        "backup-stale",
        "backup",
        "warning",
        "second copy is stale: v003 has none, the newest is of v002",
        "Older versions have a good backup, the current one has none.",
        "What was trained since exists once.",
        BACK_UP,
        'info with `backup: "off"`',
    ),
    Explanation(
        "backup-same-disk",
        "backup",
        "info",
        "second copy of v003 is on the same disk as the model",
        "The version and every backup of it lie on one file system.",
        "A disk that dies takes both.",
        ANOTHER_DISK,
        "warning once `backup_dir` is set",
    ),
    Explanation(
        "guard-not-immutable",
        "backup",
        "warning",
        "immutable_versions is on, but v003 is not immutable: that needs root, and ext4, XFS or btrfs",
        "The config asks for the file system's immutable flag on versions, and the newest one has none.",
        "Root can still delete or overwrite it by mistake.",
        "as root: `python3 model_versioner.py create`; where that cannot be,"
        " `python3 training_controller.py config set immutable_versions false`",
    ),
    Explanation(
        "backup-folder-missing",
        "backup",
        "warning",
        "backup_dir /mnt/backup is not there",
        "The folder that `backup_dir` names does not exist: a disk that is not mounted, or a wrong path.",
        "No backup can be made, and the daemon holds the queue after the next version.",
        "mount it, or set another",
    ),
    Explanation(
        "version-bytes-damaged:vNNN",
        "backup",
        "critical",
        "bytes of version v002 are damaged: model/adapter_model.safetensors has other bytes than were saved; …",
        "The last deep check read the version from the disk, and its bytes are not those that were saved. It stands"
        " until the file is replaced or read again.",
        "Restored as it is, the model would be another one; no command hands it out unhealed.",
        f"{REPAIR}; `python3 state_tracker.py --deep` reads it again",
    ),
    Explanation(
        "backup-bytes-damaged:bNNN",
        "backup",
        "warning",
        "bytes of backup b002 are damaged: model/adapter_model.safetensors has other bytes than were saved; …",
        "The last deep check read the backup from the disk, and its bytes are not those that were saved.",
        "It heals nothing, although names and sizes look well.",
        HEAL_BACKUP,
    ),
    Explanation(
        "version-gone:vNNN",
        "backup",
        "critical",
        "version v002 is gone: its folder is missing, and no command removed it; backup b002 holds it",
        "A backup, the index of versions or a data file's record knows a version of which not even the folder is left."
        " A command that removes one leaves its metadata there.",
        "Its training is lost unless a copy of it is left.",
        "`python3 model_versioner.py repair v002` makes it again from a backup; without one, `python3 backup_manager.py"
        " pull REMOTE`",
    ),
    Explanation(
        "version-index-wrong",
        "backup",
        "warning",
        "models/version_index.jsonl does not say what the metadata say: v002",
        "The cache of all metadata differs from a `metadata.json` that it claims to know.",
        "Lists, and the search for duplicates, go by the cache.",
        "`rm models/version_index.jsonl`; it is made anew",
    ),
    Explanation(
        "deep-check-incomplete",
        "backup",
        "info",
        "not all could be read in the deep check of 2026-11-21T10:00:00Z: v002: Permission denied",
        "Files or folders were closed to the user that ran the check, or could not be listed.",
        "Nothing is known to be wrong with them; they were not verified.",
        "`python3 state_tracker.py --deep`, as the user whose base dir it is",
    ),
)


def find_explanation(identifier: str) -> Explanation:
    """The entry of a finding, named as it stands (``version-damaged:v003``) or by what is before the colon.

    Raises:
        UsageError: there is no such finding.
    """
    family, colon, _ = identifier.partition(":")
    for entry in EXPLANATIONS:
        if entry.family == family and (":" in entry.id or not colon):
            return entry
    from difflib import get_close_matches

    families = [entry.family for entry in EXPLANATIONS]
    near = [name for name in families if family and (name.startswith(family) or family in name.split("-"))]
    near += [name for name in get_close_matches(family, families, 3, 0.5) if name not in near]
    hint = f"nearest: {', '.join(near)}" if near else "python3 state_tracker.py --check names the id of each finding"
    raise UsageError(f"there is no finding {identifier!r}", hint)


def explain(identifier: str, document: dict[str, Any]) -> dict[str, Any]:
    """What is known of a finding, and what of it stands in ``document``: the one that is named, or all of its kind.

    Raises:
        UsageError: there is no such finding.
    """
    entry = find_explanation(identifier)
    return {
        "id": entry.id,
        "category": entry.category,
        "severity": entry.severity,
        "otherwise": entry.otherwise or None,
        "message": entry.message,
        "meaning": entry.meaning,
        "why": entry.why,
        "remedy": entry.remedy,
        "standing": list(_standing(identifier, document)),
    }


def _standing(identifier: str, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    family, _, detail = identifier.partition(":")
    for found in document["warning_details"]:
        if found["id"] == identifier or (not detail and found["id"].partition(":")[0] == family):
            yield found

"""Names of library functions and methods by what they do."""

# What a function or method does to the paths that it is given: "verb place keyword", "verb*" with all below.
Effect = tuple[str, int, str, bool]


def _table(rows: str) -> "dict[str, tuple[Effect, ...]]":
    found: dict[str, tuple[Effect, ...]] = {}
    for row in rows.strip().splitlines():
        names, _, effects = row.partition(":")
        told = [effect.split() for effect in effects.split(",")]
        done = tuple((verb.rstrip("*"), int(place), keyword, verb.endswith("*")) for verb, place, keyword in told)
        found.update(dict.fromkeys(names.split(), done))
    return found


EFFECTS = _table("""
os.remove os.unlink os.rmdir os.removedirs: delete 0 path
shutil.rmtree send2trash.send2trash distutils.dir_util.remove_tree: delete* 0 path
guardrails.filesystem.remove_tree: delete* 0 path
guardrails.filesystem.move_file guardrails.filesystem.rename_noreplace: move* 0 source, write 1 target
guardrails.filesystem.exchange: move* 0 one, move* 1 other
guardrails.filesystem.copy_file guardrails.filesystem.copy_tree: write 1 target
guardrails.state_io.write_json guardrails.state_io.write_text: write 0 path
os.truncate os.mkfifo: write 0 path
os.ftruncate: write 0 fd
os.link: link* 0 src, write 1 dst
os.chmod os.fchmod os.chown os.fchown os.lchown os.lchmod os.utime shutil.chown: metadata 0 path
shutil.copymode shutil.copystat: metadata 1 dst
shutil.make_archive: write 0 base_name
urllib.request.urlretrieve: write 1 filename
wget.download: write 1 out
torch.save torch.jit.save: write 1 f
torch.onnx.export: write 2 f
numpy.save numpy.savez numpy.savez_compressed: write 0 file
numpy.savetxt matplotlib.pyplot.savefig: write 0 fname
safetensors.torch.save_file safetensors.torch.save_model safetensors.numpy.save_file: write 1 filename
safetensors.flax.save_file safetensors.serialize_file joblib.dump: write 1 filename
pickle.dump dill.dump cloudpickle.dump marshal.dump: write 1 file
yaml.dump yaml.safe_dump toml.dump tomli_w.dump plistlib.dump: write 1 stream
logging.FileHandler logging.handlers.RotatingFileHandler logging.handlers.TimedRotatingFileHandler: write 0 filename
logging.basicConfig: write 9 filename
cv2.imwrite imageio.imwrite: write 0 filename
huggingface_hub.snapshot_download huggingface_hub.hf_hub_download: write 9 local_dir
""")
# Methods of libraries' objects.
METHOD_EFFECTS = _table("""
save_pretrained: write 0 save_directory
save_model save_checkpoint save_state: write 0 output_dir
save_to_disk: write 0 dataset_path
savefig save tofile save_weights save_file: write 0 path
to_csv to_json: write 0 path_or_buf
to_parquet to_pickle to_feather to_zarr to_hdf: write 0 path
to_excel: write 0 excel_writer
rm rm_rf rmtree rmtree_p: delete* 0 path
""")
# Methods of paths; the path itself comes first.
PATH_EFFECTS = _table("""
unlink rmdir remove_p unlink_p: delete 0 self
rmtree rmtree_p: delete* 0 self
chmod lchmod touch: metadata 0 self
hardlink_to: link* 1 target, write 0 self
link_to: link* 0 self, write 1 target
""")
# Opening functions: the mode if none is given. The path comes first, then the mode.
OPENING = {
    **dict.fromkeys("open io.open codecs.open io.FileIO aiofiles.open tarfile.open tarfile.TarFile".split(), "r"),
    **dict.fromkeys("zipfile.ZipFile h5py.File gzip.open bz2.open lzma.open gzip.GzipFile fsspec.open".split(), "r"),
}
SHELL_LINES = frozenset(
    "os.system os.popen subprocess.getoutput subprocess.getstatusoutput asyncio.create_subprocess_shell pexpect.run"
    " pexpect.spawn invoke.run commands.getoutput".split()
)
PROCESSES = frozenset("run call check_call check_output Popen".split())
# Functions whose first argument is all that matters of the result.
SAME = frozenset(
    "os.fspath os.fsencode os.fsdecode asyncio.run asyncio.create_task asyncio.wait_for asyncio.ensure_future"
    " contextlib.closing contextlib.nullcontext textwrap.dedent inspect.cleandoc tqdm.tqdm tqdm.auto.tqdm"
    " rich.progress.track importlib.util.module_from_spec operator.index shutil.which vars memoryview".split()
)
LISTS = frozenset("list tuple set frozenset sorted collections.deque natsort.natsorted random.sample iter".split())
# Functions that neither change anything nor call what they are given.
QUIET = frozenset(
    "input isinstance issubclass hasattr callable any all os.path.islink os.makedirs os.mkdir os.fsync os.fdatasync"
    " os.close os.fstat os.stat os.lstat os.isatty os.sync fcntl.flock fcntl.lockf".split()
)
NUMBERS = frozenset(
    "os.getpid os.getppid os.getuid os.cpu_count time.time time.time_ns time.monotonic time.strftime uuid.uuid4"
    " uuid.uuid1 secrets.token_hex random.randint random.random sum round abs hash id".split()
)
PATHS = frozenset("pathlib.Path pathlib.PurePath pathlib.PosixPath pathlib.PurePosixPath path.Path".split())
EXITS = frozenset("sys.exit exit quit os._exit os.abort pytest.exit".split())
SIGNALS = {"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGTERM": 15, "SIGCONT": 18, "SIGSTOP": 19}
CONSTANTS: dict[str, object] = {
    "os.sep": "/",
    "os.path.sep": "/",
    "os.linesep": "\n",
    "os.curdir": ".",
    "os.pardir": "..",
    "os.name": "posix",
    "sys.platform": "linux",
    "sys.executable": "python3",
    "tempfile.tempdir": "/tmp",  # noqa: S108 - where it is
    **{f"signal.{name}": number for name, number in SIGNALS.items()},
    **{f"signal.Signals.{name}": number for name, number in SIGNALS.items()},
}
# The names that modules have, too.
ALIASES = {"posixpath": "os.path", "posix": "os", "nt": "os", "_io": "io", "_pyio": "io", "builtins": ""}
# The toolkit's own modules keep its rules; their commands are judged by their names.
TOOLKIT = frozenset(
    "guardrails backup_manager model_versioner state_tracker training_controller training_daemon training_queue".split()
)
# Decorators that do not hand a function to someone who calls it.
QUIET_DECORATORS = ("abc.", "contextlib.", "dataclasses.", "functools.", "pytest.", "torch.", "typing.", "unittest.")

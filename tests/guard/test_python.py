"""The guard on Python code: what a run of it would do is told, and what it only mentions is not."""

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from guardrails.guard.judge import Denied, Judge
from guardrails.guard.patterns import UNKNOWN, show
from guardrails.guard.protected import Protected
from guardrails.guard.python.code import analyse
from guardrails.guard.scene import MOST_STEPS, Scene, TooMuchError

SETTINGS = {"model_name": "tiny", "base_model": "base_models/tiny", "max_length": 512, "learning_rate": 0.0002}
LOCKED = {key: SETTINGS[key] for key in ("model_name", "base_model", "max_length")}
FOLDERS = (
    *("current_model", "models/versions/v001/model", "models/versions/v002/model", "models/backups/b001/content"),
    *(
        "base_models/tiny",
        "consolidated_models/merged",
        "queue/completed",
        "inbox",
        "logs",
        "status",
        "scripts",
        "runs",
    ),
)


class Recorder:
    """Stands for the shell: keeps what it is asked to look at, with the folder that it would run in."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.commands: list[str] = []
        self.folders: list[str] = []

    def run_text(self, text: str) -> None:
        self.commands.append(show(text))
        self.folders.append(self.scene.cwd)

    def run_argv(self, argv: list[str]) -> None:
        self.run_text(" ".join(argv))


class Run:
    """Code as it is judged: the answer, the reason and the commands that it would start."""

    def __init__(self, base: Path, source: str, arguments: tuple[str, ...] = (), script: str = "-c") -> None:
        self.judge = Judge(Protected(str(base), str(base.parent / "home")))
        self.scene = Scene(self.judge, str(base), {"HOME": str(base.parent / "home"), "MODEL": "current_model"})
        self.shell = Recorder(self.scene)
        try:
            analyse(dedent(source), self.scene, [script, *arguments], self.shell)
        except Denied:
            assert self.judge.action == "deny"

    @property
    def answer(self) -> str:
        return self.judge.action

    @property
    def reason(self) -> str:
        return self.judge.reason.split(" Instead:")[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base dir that no test changes: code is never run."""
    base = tmp_path_factory.mktemp("guard").resolve() / "base"
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True)
    for name in ("current_model", "models/versions/v001/model", "models/versions/v002/model"):
        (base / name / "adapter_model.safetensors").write_bytes(b"\0" * 8)
        (base / name / "adapter_config.json").write_text("{}\n")
    (base / "base_models/tiny/model.safetensors").write_bytes(b"\0" * 8)
    (base / "config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    (base / ".config_lock.json").write_text(json.dumps({"schema_version": 1, "locked": LOCKED}) + "\n")
    (base / "status/daemon.json").write_text('{"pid": 4242}\n')
    (base / "doomed.txt").write_text("runs/old\ncurrent_model\n")
    (base / "harmless.txt").write_text("runs/old\nlogs/old.log\n")
    (base / "other.json").write_text('{"max_length": 4096}\n')
    return base


@pytest.fixture
def files(tmp_path: Path, base: Path) -> Iterator[Path]:
    """A folder for modules and scripts beside the base dir."""
    folder = tmp_path.resolve() / "work"
    folder.mkdir()
    yield folder


STOPPED = [
    # os
    ("import os; os.remove('current_model/adapter_model.safetensors')", "current_model"),
    ("import os\nos.unlink('models/versions/v001/metadata.json')", "models/versions/v001"),
    ("import os; os.rmdir('current_model')", "current_model"),
    ("import os; os.removedirs('models/backups/b001')", "models/backups/b001"),
    ("import os; os.rename('current_model', 'old_model')", "move away current_model"),
    ("import os; os.renames('base_models', '/tmp/base_models')", "move away base_models"),
    ("import os; os.replace('/tmp/new', 'current_model')", "write into current_model"),
    ("import os; os.truncate('current_model/adapter_model.safetensors', 0)", "write into current_model"),
    ("import os; os.link('current_model/adapter_model.safetensors', 'x')", "second name"),
    ("import os; os.chmod('models/versions/v001', 0o777)", "mode or owner"),
    ("import os; os.chown('models/versions/v001', 0, 0)", "mode or owner"),
    ("import os; os.open('current_model/head', os.O_WRONLY | os.O_CREAT)", "write into current_model"),
    ("import os; fd = os.open('.config_lock.json', os.O_RDWR | os.O_TRUNC)\nos.write(fd, b'{}')", ".config_lock.json"),
    ("import os; fd = os.open('current_model', os.O_RDONLY)\nos.unlink('README.md', dir_fd=fd)", "current_model"),
    ("import os; os.symlink('current_model', 'link')\nimport shutil; shutil.rmtree('link/')", "current_model"),
    ("import os; os.chdir('models'); os.rename('versions', 'old')", "models/versions"),
    ("import os; os.chdir('..'); import shutil; shutil.rmtree('base')", "delete"),
    # shutil
    ("import shutil; shutil.rmtree('current_model')", "delete current_model"),
    ("import shutil; shutil.rmtree('./current_model/', ignore_errors=True)", "delete current_model"),
    ("import shutil; shutil.rmtree(path='models')", "models"),
    ("import shutil; shutil.rmtree('.')", "delete"),
    ("import shutil; shutil.move('current_model', '/tmp/')", "move away current_model"),
    ("import shutil; shutil.move('/tmp/model', 'current_model')", "write into current_model"),
    ("import shutil; shutil.copy('a.bin', 'current_model/')", "write into current_model"),
    ("import shutil; shutil.copy2('adapter_config.json', 'models/versions/v001/model/adapter_config.json')", "v001"),
    ("import shutil; shutil.copytree('/tmp/m', 'current_model', dirs_exist_ok=True)", "write into current_model"),
    ("import shutil; shutil.copyfile('other.json', 'config.json')", "max_length"),
    ("import shutil; shutil.unpack_archive('m.zip', 'base_models/tiny')", "base_models/tiny"),
    # pathlib
    ("from pathlib import Path\nPath('current_model/adapter_model.safetensors').unlink()", "current_model"),
    ("import pathlib\npathlib.Path('models/versions').rename('/tmp/v')", "models/versions"),
    ("from pathlib import Path\n(Path('current_model') / 'README.md').write_text('x')", "current_model"),
    ("from pathlib import Path\nPath('current_model', 'a', 'b').write_bytes(b'')", "current_model"),
    ("from pathlib import Path\nPath('new').replace('current_model')", "write into current_model"),
    ("from pathlib import Path\nwith Path('current_model/x').open('wb') as f: f.write(b'')", "current_model"),
    ("from pathlib import Path\nPath('current_model/x').open(mode='a')", "current_model"),
    ("from pathlib import Path\nPath('y').hardlink_to('current_model/adapter_model.safetensors')", "second name"),
    ("from pathlib import Path\nPath('models/versions/v001').chmod(0o755)", "mode or owner"),
    ("from pathlib import Path\nimport shutil\nshutil.rmtree(Path.cwd() / 'current_model')", "current_model"),
    ("from pathlib import Path\nimport shutil\nshutil.rmtree(Path('current_model/x').parent)", "current_model"),
    (
        "from pathlib import Path\nPath('logs/x').with_name('..').joinpath('current_model', 'f').unlink()",
        "current_model",
    ),
    ("from pathlib import Path\nPath('logs').resolve().parent.joinpath('config.json').unlink()", "config.json"),
    ("import pathlib\nfor p in pathlib.Path('current_model').iterdir(): p.unlink()", "current_model"),
    ("from pathlib import Path\nfor p in Path('.').glob('models/versions/v00*/metadata.json'): p.unlink()", "versions"),
    ("from pathlib import Path\n[p.unlink() for p in Path('.').rglob('*.safetensors')]", "safetensors"),
    (
        "from pathlib import Path\nfor p in sorted(Path('.').rglob('*')):\n if p.suffix == '.safetensors': p.unlink()",
        "**",
    ),
    # open and what writes to it
    ("open('current_model/adapter_config.json', 'w')", "current_model"),
    ("open(file='current_model/adapter_config.json', mode='r+')", "current_model"),
    ("import io; io.open('base_models/tiny/config.json', 'x')", "base_models/tiny"),
    ("import gzip; gzip.open('current_model/a.gz', 'wb')", "current_model"),
    ("import codecs; codecs.open('current_model/a', 'a', 'utf-8')", "current_model"),
    ("import tarfile; tarfile.open('x.tgz').extractall('current_model')", "current_model"),
    ("import zipfile\nwith zipfile.ZipFile('x.zip') as z: z.extractall(path='models/versions/v001')", "v001"),
    ("import json; json.dump({}, open('models/head.json', 'w'))", "models/head.json"),
    ("import pickle; pickle.dump(1, open('current_model/x.pkl', 'wb'))", "current_model"),
    ("import torch; torch.save({}, 'current_model/adapter_model.bin')", "current_model"),
    ("import numpy as np; np.save('current_model/x.npy', a)", "current_model"),
    (
        "from safetensors.torch import save_file\nsave_file(t, 'current_model/adapter_model.safetensors')",
        "current_model",
    ),
    ("from peft import PeftModel\nPeftModel.from_pretrained(b, 'x').save_pretrained('current_model')", "current_model"),
    (
        "from transformers import Trainer\ntrainer = Trainer()\ntrainer.save_model(output_dir='current_model')",
        "current_model",
    ),
    ("from trl import SFTConfig\nSFTConfig(output_dir='models/versions/v001')", "models/versions/v001"),
    (
        "from huggingface_hub import snapshot_download\nsnapshot_download('a/b', local_dir='base_models/tiny')",
        "base_models",
    ),
    ("import urllib.request\nurllib.request.urlretrieve('http://h/m', 'current_model/m')", "current_model"),
    ("from urllib.request import urlretrieve as get\nget('http://h/m', filename='base_models/tiny/m')", "base_models"),
    ("import pandas as pd\npd.DataFrame().to_csv('current_model/x.csv')", "current_model"),
    # names
    ("from shutil import rmtree as r\nr('current_model')", "current_model"),
    ("import os as o\no.remove('current_model/x')", "current_model"),
    ("import os\nf = os.remove\nf('current_model/x')", "current_model"),
    ("from os import *\nunlink('current_model/x')", "current_model"),
    ("getattr(__import__('os'), 'remove')('current_model/x')", "current_model"),
    ("__import__('shutil').rmtree('current_model')", "current_model"),
    ("import importlib\nimportlib.import_module('shutil').rmtree('current_model')", "current_model"),
    ("import sys, os\nsys.modules['os'].remove('current_model/x')", "current_model"),
    ("import functools, shutil\nfunctools.partial(shutil.rmtree, 'current_model')()", "current_model"),
    ("import shutil\nrm = lambda p: shutil.rmtree(p)\nrm('current_model')", "current_model"),
    ("import os\nlist(map(os.remove, ['logs/a', 'current_model/x']))", "current_model"),
    ("from pathlib import Path\nlist(map(Path.unlink, Path('current_model').glob('*')))", "current_model"),
    ("import shutil\n{'clean': shutil.rmtree}['clean']('current_model')", "current_model"),
    (
        "import threading, shutil\nthreading.Thread(target=shutil.rmtree, args=('current_model',)).start()",
        "current_model",
    ),
    (
        "from concurrent.futures import *\nimport os\nThreadPoolExecutor().submit(os.rmdir, 'current_model')",
        "current_model",
    ),
    ("import atexit, shutil\natexit.register(shutil.rmtree, 'current_model')", "current_model"),
    ("import ctypes\nctypes.CDLL('libc.so.6').unlink(b'current_model/x')", "current_model"),
    (
        "from guardrails.filesystem import remove_tree\nfrom pathlib import Path\nremove_tree(Path('current_model'))",
        "current_model",
    ),
    ("exec('import shutil; shutil.rmtree(\"current_model\")')", "current_model"),
    ("eval(compile('__import__(\"os\").remove(\"current_model/x\")', '', 'eval'))", "current_model"),
    # texts
    ("import shutil\nshutil.rmtree('current' + '_' + 'model')", "current_model"),
    ("import shutil\nname = 'model'\nshutil.rmtree(f'current_{name}')", "current_model"),
    ("import shutil\nshutil.rmtree('current_%s' % 'model')", "current_model"),
    ("import shutil\nshutil.rmtree('{}_{kind}'.format('current', kind='model'))", "current_model"),
    ("import shutil\nshutil.rmtree('_'.join(['current', 'model']))", "current_model"),
    ("import shutil\nshutil.rmtree('ledom_tnerruc'[::-1])", "current_model"),
    ("import shutil\nshutil.rmtree('CURRENT_MODEL'.lower())", "current_model"),
    ("import shutil\nshutil.rmtree('current-model'.replace('-', '_'))", "current_model"),
    ("import shutil\nshutil.rmtree(bytes.fromhex('63757272656e745f6d6f64656c').decode())", "current_model"),
    ("import base64, shutil\nshutil.rmtree(base64.b64decode('Y3VycmVudF9tb2RlbA==').decode())", "current_model"),
    ("import codecs, shutil\nshutil.rmtree(codecs.decode('pheerag_zbqry', 'rot13'))", "current_model"),
    (
        "import shutil\nshutil.rmtree(''.join(chr(n) for n in [99,117,114,114,101,110,116,95,109,111,100,101,108]))",
        "current_model",
    ),
    ("import os, shutil\nshutil.rmtree(os.path.join(os.getcwd(), 'current_model'))", "current_model"),
    (
        "import os\nos.remove(os.path.join(os.path.dirname(os.path.abspath('config.json')), 'config.json'))",
        "config.json",
    ),
    ("import os, shutil\nshutil.rmtree(os.environ['MODEL'])", "current_model"),
    ("import os, shutil\nshutil.rmtree(os.getenv('UNSET', 'current_model'))", "current_model"),
    ("import os, shutil\nshutil.rmtree(os.path.expanduser('~/../base/current_model'))", "current_model"),
    ("import os, shutil\nshutil.rmtree(os.path.expandvars('$MODEL'))", "current_model"),
    ("import os, sys\nos.remove(os.path.join(sys.argv[1], 'current_model', 'x'))", "current_model"),
    # flow
    ("import shutil\np = '/tmp/x'\nif input():\n    p = 'current_model'\nshutil.rmtree(p)", "current_model"),
    ("import shutil\np = 'current_model' if input() else '/tmp/x'\nshutil.rmtree(p)", "current_model"),
    ("import shutil\nfor p in ['logs/a', 'current_model']: shutil.rmtree(p)", "current_model"),
    (
        "import shutil\nfor name, path in {'a': 'logs/a', 'b': 'current_model'}.items(): shutil.rmtree(path)",
        "current_model",
    ),
    ("import os\nfor n in os.listdir('current_model'): os.remove(os.path.join('current_model', n))", "current_model"),
    (
        "import os\nwith os.scandir('current_model') as it:\n    for e in it:\n        os.remove(e.path)",
        "current_model",
    ),
    ("import os\nfor r, d, f in os.walk('models'):\n    for n in f: os.unlink(os.path.join(r, n))", "models"),
    ("import glob, os\nfor f in glob.glob('models/versions/*/model/*.safetensors'): os.remove(f)", "models/versions"),
    ("import shutil\nfor i in range(1, 4): shutil.rmtree(f'models/versions/v{i:03d}')", "models/versions/v001"),
    ("import shutil\nfor i in range(500): shutil.rmtree(f'models/versions/v{i:03d}')", "models/versions/"),
    ("import os\nwhile (n := input()): os.remove('current_model/' + n)", "current_model"),
    ("import shutil\ntry:\n    x()\nexcept Exception:\n    shutil.rmtree('current_model')", "current_model"),
    ("import shutil\ntry:\n    pass\nfinally:\n    shutil.rmtree('current_model')", "current_model"),
    ("import shutil\nmatch input():\n    case 'y': shutil.rmtree('current_model')", "current_model"),
    ("import os, shutil\nos.path.exists('current_model') and shutil.rmtree('current_model')", "current_model"),
    ("def clean(p):\n    import shutil\n    shutil.rmtree(p)\nclean('current_model')", "current_model"),
    ("import shutil\ndef f(p, *, deep=False): shutil.rmtree(p)\nf(deep=True, p='current_model')", "current_model"),
    ("import shutil\ndef f(*ps):\n    for p in ps: shutil.rmtree(p)\nf('logs/x', *['current_model'])", "current_model"),
    ("import shutil\ndef target(): return 'current_model'\nshutil.rmtree(target())", "current_model"),
    ("import os\ndef each():\n    yield 'current_model/x'\nfor p in each(): os.remove(p)", "current_model"),
    (
        """
        import shutil
        class C:
            def __init__(s, p): s.p = p
            def go(s): shutil.rmtree(s.p)
        C('current_model').go()
        """,
        "current_model",
    ),
    (
        """
        import shutil
        class A:
            d = 'current_model'
        class B(A):
            @property
            def p(s): return s.d
        shutil.rmtree(B().p)
        """,
        "current_model",
    ),
    ("import shutil, asyncio\nasync def main(): shutil.rmtree('current_model')\nasyncio.run(main())", "current_model"),
    (
        """
        import shutil
        def deco(f):
            def g(*a): return f(*a)
            return g
        @deco
        def rm(p): shutil.rmtree(p)
        rm('current_model')
        """,
        "current_model",
    ),
    (
        """
        import os
        def rm(d):
            for e in os.scandir(d):
                rm(e.path) if e.is_dir() else os.remove(e.path)
        rm('current_model')
        """,
        "current_model",
    ),
    ("import shutil\ndef main():\n    global P\n    P = 'current_model'\nmain()\nshutil.rmtree(P)", "current_model"),
    ("import shutil\npaths = []\npaths.append('current_model')\nfor p in paths: shutil.rmtree(p)", "current_model"),
    ("import shutil\nfor line in open('doomed.txt'): shutil.rmtree(line.strip())", "current_model"),
    (
        """
        from pathlib import Path
        import shutil
        for p in Path('doomed.txt').read_text().splitlines(): shutil.rmtree(p)
        """,
        "current_model",
    ),
    (
        """
        import shutil, subprocess
        x = subprocess.check_output(['ls', 'current_model'], text=True).split()
        shutil.rmtree(x[0])
        """,
        "current_model",
    ),
    (
        "import contextlib, os\nwith contextlib.chdir('current_model'): os.remove('adapter_config.json')",
        "current_model",
    ),
    (
        """
        import os, tempfile
        f = tempfile.NamedTemporaryFile(dir='current_model', delete=False)
        os.replace(f.name, 'x')
        """,
        "current_model",
    ),
    (
        """
        import click, shutil
        @click.command()
        @click.argument('path')
        def main(path): shutil.rmtree('current_model')
        main()
        """,
        "current_model",
    ),
    # odd ways to the same functions
    ("import shutil\nglobals()['shutil'].rmtree('current_model')", "current_model"),
    ("import shutil\nvars(shutil)['rmtree']('current_model')", "current_model"),
    ("import shutil\nshutil.os.remove('current_model/x')", "current_model"),
    ("import builtins\nbuiltins.open('current_model/x', 'w')", "current_model"),
    ("import io\nio.FileIO('current_model/x', 'w')", "current_model"),
    ("import os\nos.fdopen(os.open('current_model/x', os.O_CREAT | os.O_WRONLY), 'w').write('x')", "current_model"),
    ("import operator, pathlib\noperator.methodcaller('unlink')(pathlib.Path('current_model/x'))", "current_model"),
    ("import fileinput\nfor line in fileinput.input('config.json', inplace=True): print(line)", "config.json"),
    ("import logging\nlogging.FileHandler('current_model/x.log')", "current_model"),
    ("import numpy\nnumpy.memmap('current_model/adapter_model.safetensors', mode='r+')", "current_model"),
    ("import fsspec\nfsspec.filesystem('file').rm('current_model', recursive=True)", "current_model"),
    ("from send2trash import send2trash\nsend2trash(['current_model'])", "current_model"),
    ("import os, tarfile\nos.chdir('current_model')\ntarfile.open('/tmp/x').extractall()", "current_model"),
    ("from transformers import TrainingArguments as A\nA('current_model')", "current_model"),
    ("from transformers import TrainingArguments as A\nA(**dict(output_dir='current_model'))", "current_model"),
    # what holds values
    ("import shutil\na, (b, *c) = 'x', ('y', 'current_model')\nshutil.rmtree(c[0])", "current_model"),
    ("import shutil\nd = dict(zip(['k'], ['current_model']))\nshutil.rmtree(d['k'])", "current_model"),
    (
        """
        import shutil, collections
        T = collections.namedtuple('T', 'path')
        shutil.rmtree(T('current_model').path)
        """,
        "current_model",
    ),
    ("import shutil, enum\nclass D(enum.Enum):\n    M = 'current_model'\nshutil.rmtree(D.M.value)", "current_model"),
    (
        """
        import shutil, enum
        class D(str, enum.Enum):
            M = 'current_model'
        for d in D: shutil.rmtree(d)
        """,
        "current_model",
    ),
    ("import shutil, types\nshutil.rmtree(types.SimpleNamespace(p='current_model').p)", "current_model"),
    ("import shutil, string\nshutil.rmtree(string.Template('current_$x').substitute(x='model'))", "current_model"),
    ("import shutil, json\nshutil.rmtree(json.loads('{\"dir\": \"current_model\"}')['dir'])", "current_model"),
    ("import os, json\nos.rename(json.load(open('config.json'))['base_model'], 'x')", "base_models/tiny"),
    ("import shutil\ns = ''\nfor c in ['cur', 'rent', '_model']: s += c\nshutil.rmtree(s)", "current_model"),
    (
        """
        import contextlib, shutil
        with contextlib.ExitStack() as s: s.callback(shutil.rmtree, 'current_model')
        """,
        "current_model",
    ),
    (
        """
        import shutil, threading
        class T(threading.Thread):
            def run(self): shutil.rmtree('current_model')
        T().start()
        """,
        "current_model",
    ),
    (
        """
        import shutil
        class C:
            def __exit__(self, *a): shutil.rmtree('current_model')
        with C(): pass
        """,
        "current_model",
    ),
    (
        """
        import multiprocessing as m, os
        def rm(p): os.remove(p)
        m.Pool(2).map(rm, ['current_model/x'])
        """,
        "current_model",
    ),
    (
        """
        from pathlib import Path
        import shutil
        versions = sorted(Path("models/versions").glob("v*"))
        for version in versions[:-3]:
            shutil.rmtree(version)
        """,
        "models/versions",
    ),
    (
        """
        import os, shutil
        names = sorted(os.listdir("models/versions"), key=lambda name: os.path.getmtime(name))[:-5]
        for name in names:
            shutil.rmtree(os.path.join("models/versions", name))
        """,
        "models/versions",
    ),
    (
        """
        import os
        stack = ["current_model"]
        while stack:
            folder = stack.pop()
            for entry in os.scandir(folder):
                if entry.is_dir():
                    stack.append(entry.path)
                else:
                    os.unlink(entry.path)
        """,
        "current_model",
    ),
    (
        """
        import os
        for root, dirs, files in os.walk("."):
            for name in files:
                path = os.path.join(root, name)
                if name.endswith(".tmp"):
                    print(path)
                os.unlink(path)
        """,
        "**",
    ),
    (
        """
        import os
        path = "current_model/x"
        for root, dirs, files in os.walk("logs"):
            for name in files:
                if len(name) > 3:
                    path = os.path.join(root, name)
                if name.endswith(".tmp"):
                    os.remove(path)
        """,
        "current_model",
    ),
    (
        """
        import shutil
        class Cleaner:
            targets = ["logs/a"]
            def add(self, target):
                self.targets.append(target)
                return self
            def run(self):
                for target in self.targets:
                    shutil.rmtree(target)
        Cleaner().add("current_model").run()
        """,
        "current_model",
    ),
]

HARMLESS = [
    # reading, listing, measuring
    "print(open('current_model/adapter_config.json').read())",
    "import json; print(json.load(open('config.json'))['max_length'])",
    "import json\nwith open('models/versions/v001/metadata.json') as f: print(json.load(f)['training_steps'])",
    "from pathlib import Path\nprint(sum(p.stat().st_size for p in Path('current_model').rglob('*')))",
    "import os\nfor r, d, f in os.walk('models'):\n    print(r, len(f))",
    "import torch; print(torch.load('current_model/adapter_model.bin').keys())",
    """
        from safetensors import safe_open
        with safe_open('current_model/adapter_model.safetensors', 'pt') as f: print(f.keys())
        """,
    "from peft import PeftModel\nPeftModel.from_pretrained(base, 'current_model').merge_and_unload()",
    "import hashlib; print(hashlib.sha256(open('current_model/adapter_model.safetensors','rb').read()).hexdigest())",
    "import os; fd = os.open('current_model/adapter_config.json', os.O_RDONLY); os.read(fd, 10); os.close(fd)",
    "import zipfile; print(zipfile.ZipFile('current_model/x.zip').namelist())",
    "import gzip; gzip.open('models/backups/b001/x.gz').read()",
    "from transformers import AutoModel\nAutoModel.from_pretrained('base_models/tiny')",
    # copies out of the protected trees
    "import shutil; shutil.copytree('current_model', '/tmp/copy')",
    "import shutil, time; shutil.copytree('current_model', f'current_model_{time.time()}')",
    """
        import shutil
        from datetime import datetime
        shutil.copytree('current_model', f'current_model_backup_{datetime.now():%Y%m%d}')
        """,
    "import shutil; shutil.copy('current_model/adapter_config.json', '.')",
    "import shutil; shutil.make_archive('/tmp/model', 'zip', 'current_model')",
    "import tarfile\nwith tarfile.open('/tmp/m.tar.gz', 'w:gz') as t: t.add('current_model')",
    "import os; os.symlink('current_model', '/tmp/link')",
    # words, comments and messages
    "print('rm -rf current_model')",
    "# import shutil; shutil.rmtree('current_model')",
    '"""shutil.rmtree("current_model") is what nobody may run."""',
    "text = 'shutil.rmtree(\"current_model\")'\nprint(len(text))",
    "import logging; logging.warning('would delete %s', 'current_model')",
    "commands = ['rm', '-rf', 'current_model']\nprint(' '.join(commands))",
    "open('notes.md', 'w').write('never delete current_model/')",
    "import re; print(re.sub('current_model', 'x', open('README.md').read()))",
    "raise SystemExit('current_model is not to be touched')",
    "import shutil\nhelp(shutil.rmtree)\nprint(shutil.rmtree, 'current_model')",
    "assert 'current_model' in open('CLAUDE.md').read()",
    # code that is never reached
    "import shutil\ndef clean(): shutil.rmtree('current_model')",
    "import shutil\nclass C:\n    def go(self): shutil.rmtree('current_model')\nC()",
    "import shutil\nDRY_RUN = True\nif not DRY_RUN:\n    shutil.rmtree('current_model')",
    "import shutil, sys\nif len(sys.argv) > 5: shutil.rmtree('current_model')",
    "import shutil, sys\nsys.exit(0)\nshutil.rmtree('current_model')",
    "import shutil\ndef f():\n    return 1\n    shutil.rmtree('current_model')\nf()",
    "import os, shutil\nif os.environ.get('REALLY') == '1': shutil.rmtree('current_model')",
    "import shutil\nfor p in []: shutil.rmtree('current_model')",
    "import shutil\nwhile False: shutil.rmtree('current_model')",
    "import shutil\nf = lambda: shutil.rmtree('current_model')\nprint(f)",
    # other paths
    "import shutil; shutil.rmtree('/tmp/current_model')",
    "import shutil; shutil.rmtree('runs/old')",
    "import os; os.remove('.system_state.json')",
    "import os; os.remove('current_model.bak'); os.remove('config.json.tmp')",
    "import shutil\np = 'current_model'\nprint(p)\np = '/tmp/x'\nshutil.rmtree(p)",
    "import shutil\np = 'current_model'\nif input():\n    p = 'logs/a'\n    shutil.rmtree(p)",
    "import shutil\nfor p in ('logs/a', 'current_model'):\n    if p == 'current_model': continue\n    shutil.rmtree(p)",
    """
        import shutil
        KEEP = {'current_model'}
        for p in ['logs/a', 'current_model']:
            if p not in KEEP: shutil.rmtree(p)
        """,
    "import shutil\nshutil.rmtree([p for p in ['logs/a', 'current_model'] if not p.startswith('current')][0])",
    "import os\nos.makedirs('current_model', exist_ok=True)",
    "import os\nos.chdir('/tmp')\nimport shutil; shutil.rmtree('current_model')",
    "import os\nos.environ['MODEL'] = '/tmp/x'\nimport shutil; shutil.rmtree(os.environ['MODEL'])",
    "from pathlib import Path\nPath('logs/current_model').mkdir(); Path('logs/current_model').rmdir()",
    "from pathlib import Path\nimport shutil\nfor p in Path('.').rglob('__pycache__'): shutil.rmtree(p)",
    "from pathlib import Path\nfor p in Path('.').rglob('*'):\n    if p.suffix == '.pyc': p.unlink()",
    """
        import os
        for r, d, f in os.walk('.'):
            for n in f:
                if n.endswith('.pyc'): os.remove(os.path.join(r, n))
        """,
    """
        import os
        for r, d, f in os.walk('.'):
            for n in f:
                if not n.endswith(('.pyc', '.pyo')): continue
                os.remove(f'{r}/{n}')
        """,
    "import glob, os\nfor f in glob.glob('runs/*/checkpoint-*/optimizer.pt'): os.remove(f)",
    "import glob, os\nfor f in glob.glob('**/*.tmp', recursive=True): os.remove(f)",
    "import os\nfor n in os.listdir('.'):\n    if n.startswith('tmp_'): os.remove(n)",
    "import fnmatch, os\nfor n in os.listdir('.'):\n    if fnmatch.fnmatch(n, '*.log'): os.remove(n)",
    "import os\nfor n in os.listdir('logs'): os.remove('logs/' + n)",
    "import shutil\nfor line in open('harmless.txt'): shutil.rmtree(line.strip())",
    "import sys, shutil\nshutil.rmtree(sys.argv[2])",
    "import shutil\nshutil.rmtree(unknown_function())",
    # temporary folders and tests
    "import tempfile, shutil\nd = tempfile.mkdtemp()\nopen(d + '/config.json', 'w')\nshutil.rmtree(d)",
    """
        import tempfile, os
        with tempfile.TemporaryDirectory() as d:
            os.makedirs(d + '/current_model')
            open(os.path.join(d, 'current_model', 'x'), 'w')
        """,
    "import tempfile\nt = tempfile.TemporaryDirectory()\nopen(t.name + '/current_model', 'w')",
    """
        def test_x(tmp_path):
            (tmp_path / 'current_model').mkdir()
            (tmp_path / 'current_model' / 'x').write_text('')
        """,
    """
        import pytest
        @pytest.fixture
        def base(tmp_path):
            (tmp_path / 'current_model' / 'a').write_text('')
            return tmp_path
        """,
    "import tempfile, os\nfd, path = tempfile.mkstemp()\nos.write(fd, b'x')\nos.replace(path, 'notes.txt')",
    # look-alikes of methods
    "paths = ['current_model', 'logs']\npaths.remove('current_model')",
    "s = 'current_model'.replace('model', 'x')\nprint(s)",
    "d = {'current_model': 1}\nd.pop('current_model')\ndel d",
    "import os\nprint(os.path.join('current_model', 'x'), os.path.exists('current_model'))",
    "import subprocess\np = subprocess.Popen(['sleep', '5'])\np.kill()",
    "import argparse\nargparse.ArgumentParser().add_argument('--model', default='current_model')",
    "from dataclasses import dataclass\n@dataclass\nclass C:\n    model: str = 'current_model'\nprint(C().model)",
    "queue = ['current_model']\nwhile queue:\n    print(queue.pop())",
    "import random\nrandom.choice(['current_model', 'x']).rename",
    "from unittest.mock import patch\nwith patch('shutil.rmtree') as m: m('current_model')",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('loss.png')",
    "from transformers import TrainingArguments\nTrainingArguments(output_dir='runs/x', logging_dir='logs')",
    "from huggingface_hub import snapshot_download\nsnapshot_download('a/b', local_dir='/tmp/m')",
    "import urllib.request\nurllib.request.urlopen('http://localhost:8080/current_model')",
    "import sqlite3; sqlite3.connect('status/x.db').execute('delete from current_model')",
    "df.drop(columns=['current_model']).to_csv('out.csv')",
    "import os; os.kill(4242, 0)",
    "import re\nprint(re.compile('\\d+').sub('', 'current_model'))",
    "print('current_model' if True else 'x', [x for x in 'current_model'], {'a': 'current_model'})",
    "x: int\nx = 5\nx += 1\nprint(-x, ~x, x ** 200, 10 ** 9999, 1 << 99999, 'a' * 10 ** 9)",
    "this is no python: rm -rf current_model",
    "import shutil; shutil.rmtree('current_model'",
    # conditions that say which files are meant
    """
    import os
    for root, dirs, files in os.walk("."):
        dirs[:] = [name for name in dirs if name not in (".git", "current_model")]
        for name in files:
            path = os.path.join(root, name)
            if name.endswith(".orig") or name == ".DS_Store":
                os.unlink(path)
            elif name.endswith(".tmp"):
                os.remove(path)
    """,
    """
    import os
    for name in os.listdir("."):
        stem, ext = os.path.splitext(name)
        if ext in (".log", ".tmp"):
            os.remove(name)
    """,
    """
    import os
    for name in os.listdir("."):
        ext = os.path.splitext(name)[1].lower()
        if ext == ".log":
            full = os.path.join(".", name)
            os.remove(full)
    """,
    "from pathlib import Path\n"
    "for p in Path('.').rglob('*'):\n"
    "    name = p.name\n"
    "    if name == 'Thumbs.db': p.unlink()",
    "from pathlib import Path\n"
    "import shutil\n"
    "for d in Path('.').iterdir():\n"
    "    if d.name.startswith('tmp-'): shutil.rmtree(d)",
    "import os, re\nfor n in os.listdir('.'):\n    if re.match(r'nohup.*\\.out$', n): os.remove(n)",
    "import os, re\nfor n in os.listdir('.'):\n    m = re.match(r'nohup', n)\n    if not m: continue\n    os.remove(n)",
    """
    import shutil
    from pathlib import Path
    targets = [path for path in Path(".").rglob("*") if path.name in {"__pycache__", ".mypy_cache"}]
    for target in targets:
        shutil.rmtree(target)
    """,
    # what agents write all day
    """
    import os, tempfile, shutil
    from pathlib import Path
    base = Path(tempfile.mkdtemp())
    for folder in ("current_model", "models/versions", "queue/normal"):
        (base / folder).mkdir(parents=True)
    (base / "config.json").write_text("{}")
    shutil.rmtree(base / "current_model")
    os.rename(base / "models", base / "old")
    """,
    """
    import os
    before = os.getcwd()
    os.chdir("/tmp")
    try:
        open("config.json", "w").write("{}")
        os.remove("config.json")
    finally:
        os.chdir(before)
    """,
    """
    import json
    from pathlib import Path
    steps = {}
    for version in sorted(Path("models/versions").iterdir()):
        file = version / "metadata.json"
        if file.exists():
            steps[version.name] = json.loads(file.read_text()).get("training_steps")
    Path("logs/steps.json").write_text(json.dumps(steps))
    """,
    """
    import shutil
    from pathlib import Path
    target = Path("/mnt/backup") / "current_model"
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree("current_model", target)
    """,
    """
    import datetime
    from pathlib import Path
    out = Path(f"logs/report_{datetime.datetime.now():%Y%m%d}.md")
    out.write_text("# current_model")
    latest = Path("logs/latest.md")
    latest.unlink(missing_ok=True)
    latest.symlink_to(out.name)
    """,
    """
    import os
    for name in os.listdir("inbox"):
        os.rename(os.path.join("inbox", name), os.path.join("queue/completed", name.lower()))
    """,
    """
    import zipfile, os
    with zipfile.ZipFile("/tmp/m.zip", "w") as archive:
        for root, _, names in os.walk("current_model"):
            for name in names:
                archive.write(os.path.join(root, name))
    """,
    "import subprocess\n"
    "out = subprocess.run(['git', 'ls-files'], capture_output=True).stdout\n"
    "open('logs/l', 'wb').write(out)",
    "import wandb\nwandb.save('current_model/*.json')\nwandb.Artifact('m', type='model').add_dir('current_model')",
    "import pandas as pd\n"
    "pd.Series([1]).rename('current_model')\n"
    "pd.DataFrame().rename(columns={'a': 'current_model'})",
    "import ast\nprint(ast.dump(ast.parse('import os; os.remove(\"current_model/x\")')))",
    "import pytest, os\n"
    "@pytest.mark.parametrize('n', ['current_model'])\n"
    "def test_it(n, tmp_path): os.rmdir(tmp_path / n)",
    "import unittest, shutil\n"
    "class T(unittest.TestCase):\n"
    "    def test(self): shutil.rmtree(self.d + '/current_model')\n"
    "unittest.main()",
]

COMMANDS = [
    ("import os; os.system('rm -rf current_model')", ["rm -rf current_model"]),
    ("import os\nfor n in ('a', 'b'): os.system(f'rm -rf {n}')", ["rm -rf a", "rm -rf b"]),
    ("import os; print(os.popen('ls').read())", ["ls"]),
    ("import subprocess; subprocess.run(['rm', '-rf', 'current_model'], check=True)", ["rm -rf current_model"]),
    ("import subprocess as s; s.call('rm -rf x', shell=True)", ["rm -rf x"]),
    ("from subprocess import check_output as c; c('ls')", ["ls"]),
    ("import subprocess\ncmd = ['rm']\ncmd += ['-rf']\ncmd.append('x')\nsubprocess.Popen(cmd)", ["rm -rf x"]),
    ("import subprocess, pathlib\nsubprocess.run(['rm', pathlib.Path('a') / 'b'])", ["rm a/b"]),
    ("import subprocess, glob\nsubprocess.run(['rm', *glob.glob('models/*')])", ["rm models/*"]),
    ("import subprocess, sys\nsubprocess.run([sys.executable, 'x.py'])", ["python3 x.py"]),
    ("import subprocess\nsubprocess.run(args='ls -l'.split())", ["ls -l"]),
    ("import subprocess, shlex\nsubprocess.run(shlex.split('rm -rf \"a b\"'))", ["rm -rf a b"]),
    ("import subprocess\nsubprocess.run(['bash'], input='rm -rf x', text=True)", ["bash", "rm -rf x"]),
    ("import subprocess\nsubprocess.getoutput('rm x')", ["rm x"]),
    ("import os; os.execvp('rm', ['rm', '-rf', 'x'])", ["rm -rf x"]),
    ("import os; os.execl('/bin/rm', 'rm', '-rf', 'x')", ["/bin/rm -rf x"]),
    ("import os; os.spawnlp(os.P_WAIT, 'rm', 'rm', 'x')", ["rm x"]),
    ("import os; os.posix_spawn('/bin/rm', ['rm', 'x'], os.environ)", ["/bin/rm x"]),
    ("import pty; pty.spawn(['rm', 'x'])", ["rm x"]),
    ("import asyncio\nasync def f():\n    await asyncio.create_subprocess_exec('rm', 'x')\nasyncio.run(f())", ["rm x"]),
    ("import asyncio\nasyncio.run(asyncio.create_subprocess_shell('rm x'))", ["rm x"]),
    ("import sh; sh.rm('-rf', 'x')", ["rm -rf x"]),
    ("from plumbum import local\nlocal['rm']('-rf', 'x')", ["rm -rf x"]),
    ("import ctypes; ctypes.CDLL(None).system(b'rm x')", ["rm x"]),
    ("import os, signal; os.kill(4242, signal.SIGKILL)", ["kill -9 4242"]),
    ("import os; os.kill(4242, 9)", ["kill -9 4242"]),
    (
        "import os, json, signal\nos.kill(json.load(open('status/daemon.json'))['pid'], signal.SIGTERM)",
        ["kill -15 4242"],
    ),
    ("import os; os.killpg(4242, 9)", ["kill -9 -4242"]),
    ("import psutil; psutil.Process(4242).kill()", ["kill -9 4242"]),
    ("import psutil\nfor p in psutil.process_iter():\n    if 'training_daemon' in p.name(): p.kill()", ["kill -9 …"]),
    (
        "import subprocess\nsubprocess.run(['kill', '-9', subprocess.getoutput('pgrep -f training_daemon')])",
        [
            "pgrep -f training_daemon",
            "kill -9 …",
        ],
    ),
    ("import subprocess\ndef run(*words): subprocess.run(words)\nrun('rm', 'x')", ["rm x"]),
    ("import subprocess\ndef sh(line): return subprocess.run(line, shell=True)\nsh('rm x')", ["rm x"]),
    (
        "import subprocess\nif input():\n    c = 'rm a'\nelse:\n    c = 'rm b'\nsubprocess.run(c, shell=True)",
        ["rm a", "rm b"],
    ),
    ("print('os.system(\"rm x\")')", []),
    ("import subprocess\nprint(subprocess.list2cmdline(['rm', 'x']))", []),
]

LOAD = "import json\ncfg = json.load(open('config.json'))\n"
SAVE = "\njson.dump(cfg, open('config.json', 'w'), indent=2)\n"
CONFIG_KEPT = [
    LOAD + "cfg['learning_rate'] = 1e-4" + SAVE,
    LOAD + "cfg.update({'learning_rate': 1e-4, 'epochs': 2})" + SAVE,
    LOAD + "cfg.update(learning_rate=1e-4)" + SAVE,
    LOAD + "cfg |= {'epochs': 3}" + SAVE,
    LOAD + "cfg = {**cfg, 'epochs': 3}" + SAVE,
    LOAD + "cfg['alerts'] = unknown()" + SAVE,
    LOAD + "cfg['learning_rate'] *= 0.5" + SAVE,
    LOAD + "cfg['max_length'] = 512" + SAVE,
    LOAD + "cfg.pop('epochs', None); cfg.setdefault('epochs', 1)" + SAVE,
    LOAD + "for k, v in {'epochs': 1, 'seed': 2}.items():\n    cfg[k] = v" + SAVE,
    LOAD + "with open('config.json', 'w') as f:\n    f.write(json.dumps(cfg, indent=2) + '\\n')",
    LOAD + "with open('config.json', 'w') as f:\n    json.dump(cfg, f)\n    f.write('\\n')",
    LOAD + "with open('config.json', 'w') as f:\n    print(json.dumps(cfg), file=f)",
    LOAD
    + """
        import os, tempfile
        with open('config.json.tmp', 'w') as f:
            json.dump(cfg, f)
        os.replace('config.json.tmp', 'config.json')
        """,
    """
        import json
        from pathlib import Path
        p = Path('config.json')
        c = json.loads(p.read_text())
        c['seed'] = 1
        p.write_text(json.dumps(c))
        """,
    """
        import json
        with open('config.json', 'r+') as f:
            c = json.load(f)
            c['seed'] = 1
            f.seek(0)
            json.dump(c, f)
            f.truncate()
        """,
    "from pathlib import Path\np = Path('config.json')\np.write_text(p.read_text().replace('0.0002', '0.0001'))",
    """
        import re
        t = open('config.json').read()
        open('config.json', 'w').write(re.sub(r'"learning_rate": [0-9.]+', '"learning_rate": 0.1', t))
        """,
    "import shutil; shutil.copy('config.json', 'config.json')",
    LOAD + "for k in list(cfg):\n    if k == 'learning_rate': cfg[k] = 1" + SAVE,
    LOAD + "with open('config.json.new', 'w') as f:\n"
    "    json.dump(cfg, f)\n"
    "import os; os.rename('config.json.new', 'config.json')",
    """
    import json, os, tempfile
    cfg = json.load(open("config.json"))
    cfg["epochs"] = 3
    fd, path = tempfile.mkstemp(dir=".")
    with os.fdopen(fd, "w") as f:
        json.dump(cfg, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path, "config.json")
    """,
    """
    import json
    try:
        with open("config.json") as f:
            cfg = json.load(f)
    except FileNotFoundError:
        cfg = {}
    if "epochs" not in cfg:
        cfg["epochs"] = 1
    with open("config.json", "w") as f:
        json.dump(cfg, f)
    """,
    """
    import json
    from pathlib import Path
    CONFIG = Path("config.json").resolve()
    def load():
        with open(CONFIG) as f:
            return json.load(f)
    def save(cfg):
        temporary = CONFIG.with_suffix(".tmp")
        temporary.write_text(json.dumps(cfg))
        temporary.replace(CONFIG)
    def main():
        cfg = load()
        cfg["learning_rate"] = 1
        save(cfg)
    main()
    """,
    """
    lines = open("config.json").readlines()
    for i, line in enumerate(lines):
        if "learning_rate" in line:
            lines[i] = line.replace("0.0002", "0.1")
    with open("config.json", "w") as f:
        f.writelines(lines)
    """,
]
CONFIG_CHANGED = [
    LOAD + "cfg['max_length'] = 1024" + SAVE,
    LOAD + "cfg.update({'base_model': 'x'})" + SAVE,
    LOAD + "cfg.update(model_name='x')" + SAVE,
    LOAD + "cfg |= {'max_length': 4096}" + SAVE,
    LOAD + "cfg['max_length'] *= 2" + SAVE,
    LOAD + "cfg['max_length'] = int(input())" + SAVE,
    LOAD + "cfg[input()] = 1" + SAVE,
    LOAD + "if input(): cfg['max_length'] = 1024" + SAVE,
    LOAD + "del cfg['base_model']" + SAVE,
    LOAD + "cfg.pop('max_length')" + SAVE,
    LOAD + "cfg = {k: v for k, v in cfg.items() if k != 'max_length'}" + SAVE,
    LOAD + "for key in ('epochs', 'max_length'):\n    cfg[key] = 1" + SAVE,
    LOAD + "def edit(c): c['max_length'] = 1\nedit(cfg)" + SAVE,
    "import json; json.dump({'learning_rate': 1}, open('config.json', 'w'))",
    "open('config.json', 'w')",
    "open('config.json', 'w').write('{}')",
    "open('config.json', 'a').write('x')",
    "open('config.json', 'w').write(unknown)",
    "from pathlib import Path\np = Path('config.json')\np.write_text(p.read_text().replace('512', '1024'))",
    "import re\nt = open('config.json').read()\nopen('config.json', 'w').write(re.sub('512', '1024', t))",
    "import json, os\njson.dump({'max_length': 9}, open('t.json', 'w'))\nos.replace('t.json', 'config.json')",
    "import os; os.remove('config.json')",
    "import os; os.rename('config.json', 'config.bak')",
    "import shutil; shutil.copy('other.json', 'config.json')",
    "import yaml; yaml.dump({}, open('config.json', 'w'))",
    "import json; json.dump({}, open('.config_lock.json', 'w'))",
    LOAD + "for k in list(cfg):\n    if k == 'max_length': cfg[k] = 1" + SAVE,
    """
    lines = open("config.json").readlines()
    for i, line in enumerate(lines):
        if "max_length" in line:
            lines[i] = line.replace("512", "1024")
    with open("config.json", "w") as f:
        f.writelines(lines)
    """,
    """
    import json
    def save(cfg, path="config.json"):
        with open(path, "w") as f:
            json.dump(cfg, f)
    cfg = json.load(open("config.json"))
    cfg["max_length"], cfg["epochs"] = 2048, 3
    save(cfg)
    """,
]


@pytest.mark.parametrize(("source", "named"), STOPPED)
def test_what_would_harm_a_protected_path_is_stopped_and_named(base: Path, source: str, named: str) -> None:
    run = Run(base, source, (str(base),))
    assert run.answer == "deny"
    assert named in run.reason


@pytest.mark.parametrize("source", HARMLESS)
def test_harmless_code_passes(base: Path, source: str) -> None:
    run = Run(base, source, ("--verbose", "/tmp/scratch"))
    assert (run.answer, run.reason) == ("pass", "")


@pytest.mark.parametrize(("source", "commands"), COMMANDS)
def test_commands_are_handed_to_the_shell(base: Path, source: str, commands: list[str]) -> None:
    run = Run(base, source)
    assert run.answer == "pass"
    assert run.shell.commands == commands


@pytest.mark.parametrize("source", CONFIG_KEPT)
def test_an_edit_of_the_config_that_keeps_what_is_locked_passes(base: Path, source: str) -> None:
    run = Run(base, source)
    assert (run.answer, run.reason) == ("pass", "")


@pytest.mark.parametrize("source", CONFIG_CHANGED)
def test_an_edit_of_the_config_that_may_change_what_is_locked_is_stopped(base: Path, source: str) -> None:
    assert Run(base, source).answer == "deny"


def test_the_cases_are_many_and_over_a_third_are_harmless() -> None:
    harmful, harmless = len(STOPPED) + len(CONFIG_CHANGED), len(HARMLESS) + len(CONFIG_KEPT)
    assert harmful + harmless > 300
    assert harmless * 3 > harmful + harmless


SCRIPT = """
import argparse, shutil
parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["list", "clean"])
parser.add_argument("targets", nargs="*")
parser.add_argument("--out-dir", "-o", default="runs/out")
parser.add_argument("--execute", action="store_true")
args = parser.parse_args()
open(args.out_dir + "/report.txt", "w")
if args.execute and args.command == "clean":
    for target in args.targets:
        shutil.rmtree(target)
"""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("list", "current_model"), "pass"),
        (("clean", "current_model"), "pass"),
        (("clean", "runs/a", "--execute"), "pass"),
        (("clean", "runs/a", "current_model", "--execute"), "deny"),
        (("--execute", "clean", "-o", "/tmp", "current_model"), "deny"),
        (("list", "--out-dir", "current_model"), "deny"),
        (("list", "--out-dir=models/versions/v001"), "deny"),
    ],
)
def test_a_scripts_arguments_are_taken_as_argparse_takes_them(
    base: Path, arguments: tuple[str, ...], answer: str
) -> None:
    assert Run(base, SCRIPT, arguments, "tool.py").answer == answer


@pytest.mark.parametrize(
    ("decorators", "arguments", "answer"),
    [
        ("@click.command()\n@click.argument('path')", ("current_model",), "deny"),
        ("@click.command()\n@click.option('--path')", ("--path", "current_model"), "deny"),
        ("@app.command()", ("current_model",), "deny"),
        ("@click.command()\n@click.argument('path')", ("runs/a",), "pass"),
    ],
)
def test_a_command_gets_what_stands_on_its_line(
    base: Path, decorators: str, arguments: tuple[str, ...], answer: str
) -> None:
    source = (
        f"import click, shutil, typer\napp = typer.Typer()\n{decorators}\ndef main(path): shutil.rmtree(path)\nmain()"
    )
    assert Run(base, source, arguments, "tool.py").answer == answer


COMMANDS_OF_A_TOOL = """
import argparse, shutil
from pathlib import Path
def list_all(args): print(list(Path(args.root).iterdir()))
def clean(args):
    for target in args.targets: shutil.rmtree(Path(args.root) / target)
parser = argparse.ArgumentParser()
parser.add_argument("--root", default=".")
commands = parser.add_subparsers(dest="command")
commands.add_parser("list").set_defaults(func=list_all)
cleaning = commands.add_parser("clean")
cleaning.add_argument("targets", nargs="+")
cleaning.set_defaults(func=clean)
args = parser.parse_args()
args.func(args)
"""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("list", "current_model"), "pass"),
        (("clean", "runs/a"), "pass"),
        (("clean", "runs/a", "current_model"), "deny"),
        (("--root", "models", "clean", "versions"), "deny"),
        (("--root", "/tmp", "clean", "current_model"), "pass"),
    ],
)
def test_only_the_command_that_is_named_is_run(base: Path, arguments: tuple[str, ...], answer: str) -> None:
    assert Run(base, COMMANDS_OF_A_TOOL, arguments, "tool.py").answer == answer


@pytest.mark.parametrize(
    ("source", "arguments", "answer"),
    [
        ("import typer\ndef main(path, force: bool = False):\n    if force: rm(path)\ntyper.run(main)", "-v", "pass"),
        (
            "import typer\ndef main(path, force: bool = False):\n    if force: rm(path)\ntyper.run(main)",
            "--force",
            "deny",
        ),
        ("import fire\ndef clean(path): rm(path)\nfire.Fire(clean)", "", "deny"),
        ("import fire\nfire.Fire({'clean': rm})", "", "deny"),
    ],
)
def test_what_reads_the_command_line_by_itself_is_followed(
    base: Path, source: str, arguments: str, answer: str
) -> None:
    source = f"import shutil\ndef rm(path): shutil.rmtree(path)\n{source}"
    assert Run(base, source, ("current_model", *arguments.split()), "tool.py").answer == answer


@pytest.mark.parametrize("command", ["clean", "show-it"])
def test_of_a_group_of_commands_the_named_one_is_run(base: Path, command: str) -> None:
    source = """
    import click, shutil
    @click.group()
    def cli(): pass
    @cli.command()
    @click.argument("target")
    def clean(target): shutil.rmtree(target)
    @cli.command("show-it")
    @click.argument("target")
    def show(target): print(target)
    cli()
    """
    assert Run(base, source, (command, "current_model"), "tool.py").answer == ("deny" if command == "clean" else "pass")


def test_marks_in_the_source_are_unknown_text(base: Path) -> None:
    assert Run(base, f"import shutil\nshutil.rmtree('models/{UNKNOWN}/v001')").answer == "deny"
    assert Run(base, f"import shutil\nshutil.rmtree('/tmp/{UNKNOWN}')").answer == "pass"
    assert Run(base, f"import shutil\nx = {UNKNOWN}\nshutil.rmtree('current_model')").answer == "deny"


@pytest.mark.parametrize(
    "source",
    [
        "import cleanup",
        "import cleanup as c",
        "from cleanup import *",
        "import tools.wipe",
        "from tools import wipe",
        "from tools.wipe import rm\nrm('/tmp/x')",
        "import runpy; runpy.run_path('{files}/cleanup.py')",
        "exec(open('{files}/cleanup.py').read())",
        "from importlib import import_module; import_module('cleanup')",
        "import importlib.util as u\ns = u.spec_from_file_location('c', '{files}/cleanup.py')\nu.module_from_spec(s)",
    ],
)
def test_the_users_own_modules_are_followed(base: Path, files: Path, source: str) -> None:
    code = f"import shutil\ndef rm(path): shutil.rmtree(path)\nrm('{base}/current_model')\n"
    (files / "cleanup.py").write_text(code)
    (files / "tools").mkdir()
    (files / "tools" / "wipe.py").write_text(code)
    run = Run(base, source.replace("{files}", str(files)), script=str(files / "main.py"))
    assert "current_model" in run.reason


@pytest.mark.parametrize(
    "source", ["import cleanup", "from cleanup import rm\nrm('/tmp/x')", "import cleanup\ncleanup.main"]
)
def test_a_module_that_only_offers_to_delete_passes(base: Path, files: Path, source: str) -> None:
    (files / "cleanup.py").write_text(
        f"import shutil\ndef rm(path): shutil.rmtree(path)\ndef main(): rm('{base}/current_model')\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    assert Run(base, source, script=str(files / "main.py")).answer == "pass"
    assert (
        Run(base, source + "\nmain = __import__('cleanup').main\nmain()", script=str(files / "main.py")).answer
        == "deny"
    )


def test_a_script_knows_where_it_lies(base: Path) -> None:
    source = """
    from pathlib import Path
    import shutil
    shutil.rmtree(Path(__file__).resolve().parent.parent / 'current_model')
    """
    assert Run(base, source, script="scripts/clean.py").answer == "deny"
    assert Run(base, source, script="clean.py").answer == "pass"


def test_a_file_written_by_the_code_is_known_to_later_commands(base: Path) -> None:
    run = Run(
        base, "import os\nwith open('x.sh', 'w') as f: f.write('rm -rf ' + 'current_model')\nos.system('sh x.sh')"
    )
    assert run.scene.read("x.sh") == "rm -rf current_model"
    assert run.shell.commands == ["sh x.sh"]


def test_commands_run_where_the_code_runs_them(base: Path) -> None:
    run = Run(
        base, "import os, subprocess\nos.chdir('models')\nos.system('ls')\nsubprocess.run(['ls'], cwd='versions')"
    )
    assert run.shell.folders == [f"{base}/models", f"{base}/models/versions"]


def test_the_code_changes_neither_the_folder_nor_the_variables_of_the_shell(base: Path) -> None:
    run = Run(base, "import os\nos.chdir('models')\nos.environ['MODEL'] = 'x'")
    assert run.scene.cwd == str(base)
    assert run.scene.environ["MODEL"] == "current_model"


def test_an_unknown_part_of_a_command_is_marked(base: Path) -> None:
    judge = Judge(Protected(str(base), str(base)))
    scene = Scene(judge, str(base), {})
    seen: list[list[str]] = []

    class Shell(Recorder):
        def run_argv(self, argv: list[str]) -> None:
            seen.append(argv)

    analyse("import subprocess\nsubprocess.run(['rm', input(), 'runs/' + input()])", scene, ["-c"], Shell(scene))
    assert seen == [["rm", UNKNOWN, f"runs/{UNKNOWN}"]]


BOMBS = {
    "calls": "def f0(x): return x\n"
    + "".join(f"def f{n}(x): return f{n - 1}(x + 'a') + f{n - 1}(x + 'b')\n" for n in range(1, 15))
    + "f14('')",
    "exec": "s = 'pass'\n" + "s = 'exec(' + repr(s) + ')'\n" * 14 + "exec(s)",
    "loops": "".join(f"{' ' * n}while input():\n" for n in range(19)) + " " * 19 + "x = 1\n",
    "lines": "x = 1\n" * (MOST_STEPS + 1),
    "length": "x = 1 # " + "a" * 300_000,
    "nesting": "x = " + "+".join("a" for _ in range(30_000)),
}


@pytest.mark.parametrize("source", [BOMBS[name] for name in ("calls", "exec", "lines", "length", "nesting")])
def test_code_beyond_the_budget_is_too_much(base: Path, source: str) -> None:
    with pytest.raises(TooMuchError):
        Run(base, source)


def test_deep_loops_stay_within_the_budget(base: Path) -> None:
    assert Run(base, BOMBS["loops"]).scene.steps < MOST_STEPS


def test_an_open_config_is_denied_even_where_the_rest_is_too_much(base: Path) -> None:
    assert Run(base, "f = open('config.json', 'w')\nf.write('{')\n" + BOMBS["lines"]).answer == "deny"


def test_too_much_leaves_the_scene_as_it_was(base: Path) -> None:
    scene = Scene(Judge(Protected(str(base), str(base))), str(base), {})
    with pytest.raises(TooMuchError):
        analyse("import os\nos.chdir('models')\n" + BOMBS["lines"], scene, ["-c"], Recorder(scene))
    assert (scene.cwd, scene.depth) == (str(base), 0)

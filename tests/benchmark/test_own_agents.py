"""Agents of the user: classes from modules and files, SB3's zips and the trust they need, checkpoints of ours."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from forked import run_python

from dxmi_rl import evaluate, load_agent, make_agent, make_task
from dxmi_rl.benchmark.attempt import Failure, attempt
from dxmi_rl.benchmark.measure import measure
from dxmi_rl.benchmark.own_agents import CheckpointAgent, OwnAgent, UntrustedCheckpointError, is_own_agent, load_file
from dxmi_rl.benchmark.plan import Arguments, all_rows
from dxmi_rl.benchmark.presets import load_preset, make_row
from dxmi_rl.benchmark.protocol import Row, Run, Sizes
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import save_tensors

PAGE = Path(__file__).parents[2] / "docs" / "own_agents.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
FEW: dict[str, Any] = {"fit": False, "floors": False, "samples": 500, "draws": 1, "trajectories": 500}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, empty; modules and entries of the path that a test brings in are gone after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write(file: Path, code: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(code, encoding="utf-8")
    return file


@pytest.mark.slow
def test_the_pages_example_learns(folder: Path) -> None:
    assert BLOCKS[0].count("\n") < 60
    source, own = write(folder / "my_module.py", BLOCKS[0]), OwnAgent("my_module:MyAgent")
    own.check()
    assert (own.label, own.trains) == ("my-reinforce", True)
    assert hashlib.sha256(source.read_bytes()).hexdigest().startswith(own.digest) and len(own.digest) == 16
    agent = own.build(make_task("8gaussians"), seed=1, n_trajectories=64)
    before = quick_scores(agent, samples=2000)["kl_bound"]
    agent.learn(64_000)
    assert quick_scores(agent, samples=2000)["kl_bound"] < before - 0.3
    assert agent.costs.energy_evals == 64_000 // 5 and set(agent.log) == {"policy_loss"}
    agent.save("mine.safetensors")
    again = type(agent).load("mine.safetensors")
    torch.testing.assert_close(again.sample(10, seed=0), agent.sample(10, seed=0))


DRIFTING = """
import torch
from dxmi_rl.agents import PPO


class Drifting(PPO):
    name = "drifting"
    has_density = False

    def _build(self):
        super()._build()
        self.shift = torch.zeros(2)

    def iterate(self, on_final=None):
        log = super().iterate(on_final)
        self.shift = self.shift + 0.5
        return log

    def sample(self, n, **options):
        return super().sample(n, **options) + self.shift

    def extra_tensors(self):
        return super().extra_tensors() | {"shift": self.shift}

    def set_extra_tensors(self, tensors):
        super().set_extra_tensors(tensors)
        self.shift = tensors["shift"]
"""


@pytest.mark.slow
def test_the_best_checkpoint_has_all_that_an_agent_saves(folder: Path) -> None:
    write(folder / "my_module.py", DRIFTING)
    row = make_row("8gaussians", "my_module:Drifting", 2000, folder=str(folder))
    sizes = Sizes(fit=False, samples=500, draws=1, trajectories=500, curve_points=2)
    found = measure(Run(row, 0, sizes=sizes))[0]
    assert found["best"]["timesteps"] == 0
    assert found["best"]["scores"]["sliced_w2"] < 1 < found["scores"]["sliced_w2"]


WITHOUT_POLICY = """
import torch
from dxmi_rl.agents import Agent, PPO


class Plain(Agent):
    name = "plain"
    Config = PPO.Config
    has_density = False

    def _build(self):
        self.net = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.Adam(self.net.parameters())

    def modules(self):
        return {"net": self.net}

    def optimizers(self):
        return {"net": self.optimizer}

    def sample(self, n, seed=None):
        generator = torch.Generator().manual_seed(seed or 0)
        with torch.no_grad():
            return self.net(torch.randn(n, 2, generator=generator))

    def iterate(self, on_final=None):
        loss = self.mdp.energy(self.net(torch.randn(64, 2, generator=self.generator))).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.costs.timesteps += 64
        return {"loss": loss.detach()}
"""


@pytest.mark.slow
def test_an_agent_without_a_density_needs_no_policy(folder: Path) -> None:
    write(folder / "my_module.py", WITHOUT_POLICY)
    agent = OwnAgent("my_module:Plain").build(make_task("8gaussians"), seed=0)
    agent.learn(640, checkpoint=folder / "plain.safetensors")
    loaded = type(agent).load(folder / "plain.safetensors")
    assert torch.equal(loaded.sample(5, seed=1), agent.sample(5, seed=1))
    assert evaluate(agent, **FEW)["sliced_w2"] > 0
    with pytest.raises(
        CheckpointError, match=r"is of agent 'plain', which is not registered: .*YourClass\.load\(file\)"
    ):
        load_agent(folder / "plain.safetensors")


def test_an_agent_with_a_density_needs_a_policy(folder: Path) -> None:
    write(folder / "my_module.py", WITHOUT_POLICY.replace("    has_density = False\n", ""))
    with pytest.raises(TypeError, match=r"_build of Plain must set self\.policy, and did not"):
        OwnAgent("my_module:Plain").build(make_task("8gaussians"), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(1, len(BLOCKS)))
def test_the_pages_blocks_run(folder: Path, index: int) -> None:
    if "RunLogger" in BLOCKS[index]:
        pytest.importorskip("tensorboard")
    write(folder / "my_module.py", BLOCKS[0])
    exec(compile(BLOCKS[index], f"own_agents.md block {index}", "exec"), {"__name__": "__main__"})


BASE = """
from dxmi_rl.agents import Agent, Base

class Mine(Base):
    name = "mine"
"""


def test_references_are_told_from_names() -> None:
    for text in ("a:B", "folder/file.py:B", "x.zip", "some/x.safetensors"):
        assert is_own_agent(text) and OwnAgent(text).reference == text
    assert not any(map(is_own_agent, ["dxdp", "sb3-ppo", "zip"]))
    for text in ("dxdp", ":B", "a:", "a-b:C", "a.b:C.d", "a.txt:C d", ".a:B"):
        with pytest.raises(ValueError, match=r"reference must be 'module:Class'.*got"):
            OwnAgent(text)
    with pytest.raises(TypeError, match="must be a text, got 3"):
        OwnAgent(3)  # type: ignore[arg-type]


def test_modules_packages_and_files(folder: Path) -> None:
    write(folder / "package_of_mine" / "__init__.py", "")
    write(folder / "package_of_mine" / "inside.py", BASE)
    write(folder / "sub" / "helper_of_mine.py", "WORD = 'helped'")
    write(folder / "sub" / "random.py", "import helper_of_mine\n" + BASE.replace('"mine"', "helper_of_mine.WORD"))
    named, file = OwnAgent("package_of_mine.inside:Mine"), OwnAgent("sub/random.py:Mine")
    assert (named.label, file.label, file.trains) == ("mine", "helped", False)
    assert OwnAgent(f"{folder}/sub/random.py:Mine")._agent_class() is file._agent_class()
    assert not str(sys.modules["random"].__file__).startswith(str(folder))
    assert OwnAgent("dxmi_rl.agents:PPO").label == "ppo"  # one of this package is itself
    assert file.build(make_task("8gaussians"), seed=2, n_trajectories=8).config.n_trajectories == 8
    with pytest.raises(UnknownNameError, match=r"'n_trajectorie'.*Did you mean 'n_trajectories'"):
        named.build(make_task("8gaussians"), seed=0, n_trajectorie=8)


@pytest.mark.slow
def test_it_is_found_from_another_folder_and_in_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "worker_module.py", BASE)
    owns = [OwnAgent("worker_module:Mine"), OwnAgent("worker_module.py:Mine")]
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    copies = pickle.loads(pickle.dumps(owns))
    assert copies == owns and copies[0].folder == str(folder)
    describe = joblib.delayed(lambda own: (own.label, own.digest, os.getpid()))
    found = joblib.Parallel(n_jobs=2, backend="loky")(describe(own) for own in owns)
    assert [entry[:2] for entry in found] == [("mine", owns[0].digest)] * 2
    assert all(pid != os.getpid() for _, _, pid in found)


@pytest.mark.parametrize(
    ("code", "reference", "kind", "message"),
    [
        ("", "modul_b:Mine", UnknownNameError, r"unknown module 'modul_b'.*Did you mean 'module_b'"),
        ("", "module_b.deeper:Mine", UnknownNameError, "unknown module 'module_b.deeper'"),
        ("", "nothing.py:Mine", FileNotFoundError, r"no file '.*nothing.py', which agent 'nothing.py:Mine' names"),
        (
            BASE,
            "module_b:Mines",
            UnknownNameError,
            r"class of module_b 'Mines'.*Did you mean 'Mine'.*Known: Base, Mine",
        ),
        ("import not_there_at_all", "module_b:Mine", ModuleNotFoundError, "not_there_at_all"),
        ("1 / 0", "module_b.py:Mine", ImportError, "failed: ZeroDivisionError: division"),
        ("Mine = 3", "module_b:Mine", TypeError, "must be a subclass of dxmi_rl.agents.Agent, got 3"),
        ("from dxmi_rl import Agent as Mine", "module_b:Mine", TypeError, "must define _build, iterate, name, Config"),
        (BASE.replace('"mine"', "None"), "module_b:Mine", TypeError, "name of agent .* must be a text, got None"),
        (BASE + "    Config = dict", "module_b:Mine", TypeError, "must be a dataclass, got <class 'dict'>"),
        (BASE.replace('"mine"', '"ppo"'), "module_b:Mine", ValueError, "name 'ppo' of agent 'module_b:Mine' is taken"),
        (BASE.replace('    name = "mine"', "    pass"), "module_b:Mine", ValueError, "name 'base' .* is taken"),
    ],
)
def test_classes_that_do_not_do(folder: Path, code: str, reference: str, kind: type, message: str) -> None:
    write(folder / "module_b.py", code)
    own = OwnAgent(reference)
    for use in (own.check, lambda: own.build(make_task("8gaussians"), seed=0)):
        with pytest.raises(kind, match=message):
            use()


def test_a_module_that_is_another_already(folder: Path) -> None:
    for place in (folder, folder / "other"):
        write(place / "twice.py", BASE)
    OwnAgent("twice:Mine").check()
    with pytest.raises(ValueError, match=r"module 'twice' is .* already, not .*: rename yours"):
        OwnAgent("twice:Mine", folder=str(folder / "other")).check()


@pytest.fixture(scope="module", name="zips")
def trained_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    sb3 = pytest.importorskip("stable_baselines3")
    from dxmi_rl.envs import make_sb3_env

    models, folder = {}, tmp_path_factory.mktemp("zips")
    on, off = {"n_steps": 5}, {"buffer_size": 1000, "learning_starts": 8, "batch_size": 8}
    for name, settings in {"PPO": {**on, "batch_size": 40}, "A2C": on, "SAC": off, "TD3": off, "DDPG": off}.items():
        env = make_sb3_env("8gaussians", num_envs=8, coordinates="next_state" if name == "A2C" else "noise")
        small = {"policy_kwargs": {"net_arch": [8]}, "gamma": 1.0, "seed": 0, "device": "cpu"}
        model = getattr(sb3, name)("MlpPolicy", env, **small, **settings).learn(40)
        models[name] = (model, folder / f"{name.lower()}.zip")
        model.save(models[name][1])
    return models


@pytest.mark.parametrize("name", ["PPO", "A2C", "SAC", "TD3", "DDPG"])
def test_sb3_checkpoints_score_as_their_models(zips: dict[str, tuple[Any, Path]], name: str) -> None:
    model, file = zips[name]
    own = OwnAgent(str(file), trust_checkpoint=True)
    own.check()
    assert (own.label, own.trains) == (name.lower(), False)
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(own.digest)
    agent = own.build(make_task("8gaussians"), seed=3)
    assert isinstance(agent, CheckpointAgent) and agent.seed == 3 and agent.name == "checkpoint"
    assert agent.coordinates == ("next_state" if name == "A2C" else "noise")
    assert agent.has_density == (name in ("PPO", "A2C", "SAC"))
    scores, expected = evaluate(agent, **FEW), evaluate(model, **FEW)
    if agent.has_density:
        assert scores == pytest.approx(expected, rel=1e-4)
        assert quick_scores(agent, samples=200)["kl_bound"] > 0
    else:
        assert "kl_bound" not in scores and scores["sliced_w2"] == pytest.approx(expected["sliced_w2"], rel=0.3)
    assert agent.learn(10).num_timesteps == 10
    np.testing.assert_array_equal(agent.sample(50, seed=1), agent.sample(50, seed=1))


def test_deterministic_policies_play_what_their_model_predicts(zips: dict[str, tuple[Any, Path]]) -> None:
    model, file = zips["TD3"]
    agent = OwnAgent(str(file), trust_checkpoint=True).build(make_task("8gaussians"), seed=0)
    x = agent.mdp.reset(20, torch.Generator().manual_seed(4))
    final = agent.sample(20, seed=4)
    for t in range(agent.mdp.horizon):
        observation = torch.cat([x, torch.full((20, 1), 1 - t / agent.mdp.horizon)], dim=1)
        action = torch.from_numpy(model.predict(observation.numpy(), deterministic=True)[0])
        x = agent.mdp.next_state(x, t, action, "noise")
    torch.testing.assert_close(final, x, rtol=1e-3, atol=1e-3)


def test_what_a_checkpoint_must_fit(zips: dict[str, tuple[Any, Path]]) -> None:
    own = OwnAgent(str(zips["PPO"][1]), trust_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"observes Box.*task 'funnel10' has flat boxes of shapes \(11,\)"):
        own.build(make_task("funnel10"), seed=0)
    with pytest.raises(UnknownNameError, match="setting of 'checkpoint'"):
        own.build(make_task("8gaussians"), seed=0, learning_rate=1.0)
    assert own.build(make_task("8gaussians"), seed=0, coordinates="next_state").coordinates == "next_state"  # type: ignore[attr-defined]


def edited(source: Path, target: Path, change: Any) -> Path:
    """A copy of a zip with ``change(data)`` as its data."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(change(json.loads(content))) if name == "data" else content)
    return target


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_an_untrusted_pickle_is_not_executed(zips: dict[str, tuple[Any, Path]], folder: Path) -> None:
    marker = folder / "executed"
    pickled = {"clip_range": {":type:": "", ":serialized:": base64.b64encode(pickle.dumps(Evil())).decode()}}
    evil = edited(zips["PPO"][1], folder / "evil.zip", lambda data: data | pickled)
    own = OwnAgent(str(evil))
    assert (own.label, own.trains, len(own.digest)) == ("evil", False, 16)
    for use in (own.check, lambda: own.build(make_task("8gaussians"), seed=0)):
        with pytest.raises(UntrustedCheckpointError, match=r"\(PPO\).*run any code.*--trust-checkpoint"):
            use()
    trusted = OwnAgent(str(evil), trust_checkpoint=True)
    trusted.check()  # even then nothing is unpickled before build
    assert not marker.exists()
    with pytest.raises(CheckpointError, match="SB3 could not load"):
        trusted.build(make_task("8gaussians"), seed=0)
    assert marker.exists()  # so the file is what it is meant to be


def test_zips_that_are_no_checkpoints(zips: dict[str, tuple[Any, Path]], folder: Path) -> None:
    ppo = zips["PPO"][1]
    (folder / "text.zip").write_text("no zip")
    for name, entry in {"empty": "readme", "no_json": "data"}.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(entry, b"\xff{")
    content = bytearray(ppo.read_bytes())
    (folder / "cut.zip").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(ppo) as archive:
        content[archive.getinfo("policy.pth").header_offset + 200] ^= 0xFF
    (folder / "flipped.zip").write_bytes(content)
    foreign = {"policy_class": {"__module__": "sb3_contrib.common.maskable.policies"}}
    edited(ppo, folder / "list.zip", lambda data: [1])
    edited(ppo, folder / "dqn.zip", lambda data: {"exploration_rate": 1.0})
    edited(ppo, folder / "recurrent.zip", lambda data: data | {"_last_lstm_states": None})
    edited(ppo, folder / "maskable.zip", lambda data: data | foreign)
    for name in ("text", "empty", "no_json", "cut", "flipped"):
        with pytest.raises(CheckpointError, match=f"'.*{name}.zip' is no checkpoint of Stable-Baselines3, or damaged"):
            OwnAgent(f"{name}.zip", trust_checkpoint=True).check()
    for name in ("list", "dqn", "recurrent", "maskable"):
        with pytest.raises(CheckpointError, match="must be a checkpoint of PPO, A2C, SAC, TD3"):
            OwnAgent(f"{name}.zip").check()
    for name in ("none.zip", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            OwnAgent(name).check()


@pytest.mark.slow
def test_checkpoints_of_ours(folder: Path) -> None:
    trained = make_agent("ppo", task="8gaussians", seed=5, n_trajectories=16, policy={"width": 8}).learn(160)
    trained.save("trained.safetensors")
    own = OwnAgent("trained.safetensors")
    own.check()
    agent = own.build(make_task("8gaussians"), seed=7)
    assert (own.label, own.trains, agent.trains) == ("trained", False, False)
    assert type(agent) is type(trained) and agent.seed == 7 and agent.config.policy.width == 8
    torch.testing.assert_close(agent.sample(10, seed=0), trained.sample(10, seed=0))
    assert not torch.equal(agent.sample(10), own.build(make_task("8gaussians"), seed=8).sample(10))
    assert evaluate(agent, **FEW) == evaluate(trained, **FEW)
    with pytest.raises(CheckpointError, match="'8gaussians', not on 'gmm9'"):
        own.build(make_task("gmm9"), seed=0)
    with pytest.raises(TypeError, match=r"settings of its own, got \['width'\]"):
        own.build(make_task("8gaussians"), seed=0, width=9)


def test_checkpoints_have_rows_on_their_task_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_agent("ppo", task="8gaussians", n_trajectories=16, policy={"width": 8}).save("trained.safetensors")
    preset = load_preset("quick")
    rows = all_rows(Arguments(preset="quick", agent=("trained.safetensors",)), preset)
    assert [row.task for row in rows if row.own] == ["8gaussians"]
    assert "trained on 8gaussians-data, trained on digits" in capsys.readouterr().out


def test_own_agents_get_the_seeds_of_the_first_trained_row(folder: Path) -> None:
    write(folder / "my_module.py", BLOCKS[0])
    preset = load_preset("standard")
    for row in all_rows(Arguments(preset="standard", agent=("my_module:MyAgent",)), preset):
        if row.own:
            first = next(one for one in preset.rows if one.task == row.task and one.budget)
            assert row.seeds == first.seeds and row.budget == first.budget and len(row.seeds) == 10


def test_damaged_and_foreign_tensors(folder: Path) -> None:
    (folder / "text.safetensors").write_text("no tensors")
    save_tensors("samples.safetensors", {"x": torch.zeros(1)}, {"key": "k"})
    save_tensors("unknown.safetensors", {"x": torch.zeros(1)}, {"agent": "dxpd"})
    for name, message in {"text": "damaged or", "samples": "names no", "unknown": "'dxpd', which is not regi"}.items():
        with pytest.raises(CheckpointError, match=message):
            OwnAgent(f"{name}.safetensors").check()


@pytest.mark.slow
def test_keys_tell_classes_of_one_file_apart_and_notice_their_bases(tmp_path: Path) -> None:
    text = "from dxmi_rl.agents import PPO\nfrom keybase import Base\n"
    text += "".join(f"class {name}(Base):\n    name = '{name.lower()}x'\n" for name in ("First", "Second"))
    (tmp_path / "keyfile.py").write_text(text, encoding="utf-8")
    code = (
        "import pathlib, sys\n"
        "sys.dont_write_bytecode = True\n"  # which is told by its size and second alone
        "from dxmi_rl.benchmark.protocol import Row, Run\n"
        "base = f'from dxmi_rl.agents import PPO\\nclass Base(PPO):\\n    width = {sys.argv[1]}\\n'\n"
        "pathlib.Path('keybase.py').write_text(base, encoding='utf-8')\n"
        "for name in ('First', 'Second'):\n"
        "    print(Run(Row(name, '8gaussians', f'keyfile:{name}', 100), 0).key)"
    )
    commands = [("-c", code, width) for width in ("3", "4", "3")]
    found = run_python(commands, ["dxmi_rl.benchmark.protocol"], cwd=tmp_path, check=True).stdout.split()
    before, after, again = found[:2], found[2:4], found[4:]
    assert len({*before, *after}) == 4
    assert again == before


DTYPE = """
import torch
from dxmi_rl.agents import PPO


class Double(PPO):
    name = "double"

    def iterate(self, on_final=None):
        log = super().iterate(on_final)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return log


class Odd(PPO):
    name = "odd"

    def iterate(self, on_final=None):
        raise BaseException("odd")
"""


def test_what_an_agent_changes_for_the_whole_process_is_put_back(tmp_path: Path) -> None:
    """Other runs follow in the same worker; torch's default dtype would give them other numbers."""
    (tmp_path / "changes.py").write_text(DTYPE, encoding="utf-8")
    sizes = Sizes(samples=50, draws=1, trajectories=50, fit=False, best=False, floors=False, curve_points=1, kept=10)
    for name, message in (("Double", "the run left torch's default dtype at torch.float64"), ("Odd", "odd")):
        settings = {"n_trajectories": 8}
        row = Row("mine", "8gaussians", f"changes.py:{name}", 40, agent_settings=settings, folder=str(tmp_path))
        ending = attempt(Run(row, 0, sizes=sizes))
        assert isinstance(ending, Failure) and message in ending.error
        assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


@pytest.mark.parametrize("code", ["def x(:", "raise RuntimeError('no luck')", "import sys; sys.exit(3)", "1 / 0"])
def test_a_file_that_fails_is_one_error(code: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(code, encoding="utf-8")
    with pytest.raises(ImportError, match=r"running '.*broken.py' failed: \w+: "):
        load_file(tmp_path / "broken.py")

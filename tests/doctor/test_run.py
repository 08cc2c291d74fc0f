"""Each thing that the doctor looks for is made to happen, and found with what to do about it."""

from __future__ import annotations

import argparse
import getpass
import http.server
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dvc.repo import Repo

from isodense.cli.commands import doctor as command
from isodense.doctor.checks import hardware, installed, remotes, results, settings, space, versioned
from isodense.doctor.checks.project import Finding, Project, section_class
from isodense.doctor.run import CHECKS, describe, examine, find_project
from isodense.pipeline import params
from isodense.pipeline.artifact import read_manifest, write_manifest
from isodense.pipeline.errors import IsodenseError
from tests.damage import reseal

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    return finished.copy(tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def checkout(copied, monkeypatch):
    """Give a copy of the finished project, its environment's variables set; put back afterwards."""
    for name in ("DVC_ROOT", "ISODENSE_CACHE", "ISODENSE_LAUNCH", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in copied.environ.items():
        monkeypatch.setenv(name, value)
    yield copied
    copied.run("git", "checkout", "-q", "--", ".")
    copied.run("git", "clean", "-qfd")
    (copied.root / ".dvc" / "config.local").unlink(missing_ok=True)


def found(check, checkout, level=None):
    """Return what a check finds, of a level if one is given, as pairs of text and hint."""
    findings = list(check(Project(checkout.root)))
    return [(one.text, one.hint) for one in findings if level in (None, one.level)]


def only(check, checkout, level):
    """Return text and hint of the single finding that a check makes, which is of `level`."""
    findings = list(check(Project(checkout.root)))
    assert [one.level for one in findings] == [level], findings
    return findings[0].text, findings[0].hint


def doctor(capsys, monkeypatch, folder, *words):
    """Run the command in a folder; return its status and what it wrote."""
    monkeypatch.chdir(folder)
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    args = parser.parse_args(["doctor", *words])
    try:
        args.run(args)
    except SystemExit as stopped:
        return stopped.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def snapshot(root):
    skip = {".dvc/tmp", ".git"}
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in root.rglob("*")
        if path.is_file()
        and not any(path.relative_to(root).as_posix().startswith(one) for one in skip)
    }


# --- the command ----------------------------------------------------------------------------------


def test_a_finished_project_has_no_problem_and_nothing_is_changed(
    checkout, capsys, monkeypatch, tmp_path
):
    store = tmp_path / "store"
    store.mkdir()
    use(checkout, storage=str(store))
    before = snapshot(checkout.root)
    status, out = doctor(capsys, monkeypatch, checkout.root / "stages")  # from any folder of it
    assert status == 0, out
    assert "[fail]" not in out
    for words in (
        "all packages",
        "dvc.lock: in step",
        "files that stages depend on are committed",
        "draws in all",
        "storage: " + str(store),
        "preflight: ",
        "GB free for",
        "[ok]   reward: right in",
        "of the true neighbours found",
    ):
        assert words.removeprefix("all packages") in out
    assert out.splitlines()[-1].startswith("problems: 0, warnings: ")
    assert snapshot(checkout.root) == before
    assert checkout.run("git", "status", "--short") == " M .dvc/config\n"  # the test did that


def test_a_problem_makes_the_status_1_and_json_lists_it(checkout, capsys, monkeypatch):
    checkout.set({"density.k": 0})
    monkeypatch.setattr("isodense.doctor.run.CHECKS", (settings.check_params,))
    status, out = doctor(capsys, monkeypatch, checkout.root, "--json")
    assert status == 1
    (finding,) = json.loads(out)
    assert finding["level"] == "problem"
    assert "density.k" in finding["text"]
    status, out = doctor(capsys, monkeypatch, checkout.root)
    assert status == 1
    assert "[fail] params: " in out
    assert "\n       -> correct params.yaml\nproblems: 1, warnings: 0\n" in out


def test_colour_moves_nothing(monkeypatch):
    findings = [Finding("disk", level, "text", "hint") for level in ("ok", "warning", "problem")]
    plain = [describe(one) for one in findings]
    assert {line.index("disk") for line in plain} == {7}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = [describe(one) for one in findings]
    assert coloured != plain
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in coloured] == plain


def test_a_package_that_is_missing_ends_one_check_only(checkout, monkeypatch):
    monkeypatch.setitem(sys.modules, "dvc.config", None)  # as if it could not be imported
    links, device = examine_only(checkout, versioned.check_links, hardware.check_device)
    assert (links.level, device.level) == ("problem", "ok")
    assert "pip install" in links.hint


def test_a_half_written_dvc_yaml_is_looked_at_all_the_same(checkout):
    (checkout.root / "dvc.yaml").write_text("stages:\n  one:\n  two: {deps: , outs: }\n")
    for check in (versioned.check_code, versioned.check_links):
        found(check, checkout)
    assert "dvc.yaml" in only(versioned.check_lock, checkout, "problem")[0]


def test_a_run_that_is_going_on_is_no_problem(checkout):
    with Repo(str(checkout.root)).lock:
        text, _ = only(versioned.check_lock, checkout, "warning")
    assert "another DVC process" in text


def test_outside_a_project_it_says_so(tmp_path):
    with pytest.raises(IsodenseError, match="is in no isodense project"):
        find_project(tmp_path)


def test_a_clone_with_nothing_computed_is_looked_over(finished, tmp_path, monkeypatch):
    made = finished.clone(tmp_path)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    findings = list(examine(Project(made.root)))
    assert [one for one in findings if one.level == "problem"] == []
    assert {one.name for one in findings} >= {"params", "batches", "code", "dvc.lock", "disk"}
    made.set({"download.sample.pairs": 50})
    text, _ = only(versioned.check_lock, made, "warning")  # though dvc's dry run fails here
    assert text.startswith("download")
    made.run("git", "checkout", "-q", "params.yaml")
    with (made.root / "src/isodense/neighbors/exact.py").open("a") as code:
        code.write("# changed\n")
    text, hint = only(versioned.check_lock, made, "warning")
    assert "not been computed here" in text
    assert "dvc pull" in hint
    (made.root / "dvc.lock").unlink()
    assert only(versioned.check_lock, made, "ok") == (
        "not there: nothing has been run yet",
        "dvc repro",
    )


def test_all_checks_are_in_the_list():
    modules = (hardware, installed, remotes, results, settings, space, versioned)
    written = {
        value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("check_") and value.__module__ == module.__name__
    }
    assert set(CHECKS) == written
    assert len(CHECKS) == len(written) == 23
    assert all(issubclass(section_class(name), params.Params) for name in params.SECTIONS)


def test_a_check_that_cannot_look_is_a_finding(checkout):
    (checkout.root / ".dvc" / "config").write_text("[core\n")
    findings = list(examine_only(checkout, versioned.check_links, remotes.check_remotes))
    assert {one.level for one in findings} == {"problem"}
    assert all("settings cannot be read" in one.text for one in findings)


def examine_only(checkout, *checks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isodense.doctor.run.CHECKS", checks)
        return list(examine(Project(checkout.root)))


# --- params and launchers -------------------------------------------------------------------------


def test_all_faults_of_all_sections_are_listed_once(checkout):
    text = (checkout.root / "params.yaml").read_text()
    broken = text.replace("k_max: 50", "k_max: many").replace("ess: 0.8", "es: 0.8")
    (checkout.root / "params.yaml").write_text(broken + "densty: {}\n")
    faults = [fault for fault, _ in found(settings.check_params, checkout, "problem")]
    assert len(faults) == 4  # ess is missing, too
    for words in (
        "k_max: 'many' is not an integer",
        "did you mean 'ess'",
        "did you mean 'density'",
    ):
        assert sum(words in fault for fault in faults) == 1


def test_batches_that_cannot_be_shared_out(checkout, monkeypatch):
    text, _ = only(settings.check_batches, checkout, "ok")
    assert text == "2 prompts of 2 completions a step, 4 draws in all"
    checkout.set({"train.completions_per_pass": 3})
    text, hint = only(settings.check_batches, checkout, "problem")
    assert "do not divide" in text
    assert "section train" in hint
    monkeypatch.setenv("ISODENSE_LAUNCH", "torchrun --nproc-per-node 3")
    text, _ = only(settings.check_batches, checkout, "problem")
    assert "over 3 processes" in text


def test_what_trl_refuses(checkout):
    checkout.set({"train.grpo": {"loss_type": "grpo", "bf16": True, "fp16": True}})
    text, _ = only(settings.check_batches, checkout, "problem")
    assert "TRL refuses" in text


def test_launchers(checkout, monkeypatch):
    assert found(settings.check_launcher, checkout) == []
    monkeypatch.setenv("ISODENSE_LAUNCH", "no-such-launcher --nproc-per-node 2")
    assert "'no-such-launcher'" in only(settings.check_launcher, checkout, "problem")[0]
    monkeypatch.delenv("ISODENSE_LAUNCH")
    monkeypatch.setenv("ISODENSE_EXECUTOR", "spark")
    text, hint = only(settings.check_launcher, checkout, "problem")
    assert (text, hint) == ("ISODENSE_EXECUTOR is 'spark'", "set it to local or ray")
    monkeypatch.delenv("ISODENSE_EXECUTOR")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert "4 tasks" in only(settings.check_launcher, checkout, "warning")[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert any("WORLD_SIZE is 2" in text for text, _ in
               found(settings.check_launcher, checkout, "problem"))  # fmt: skip


# --- what is installed ----------------------------------------------------------------------------


def test_packages_that_are_too_old_are_named(tmp_path, monkeypatch, checkout):
    assert "dvc " in only(installed.check_packages, checkout, "ok")[0]
    folder = tmp_path / "dvc-3.1.0.dist-info"  # found before the real one
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: dvc\nVersion: 3.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    text, hint = only(installed.check_packages, checkout, "problem")
    assert text.startswith("dvc is 3.1.0, not >=")
    assert "pip install" in hint


def test_the_command_of_another_checkout_is_found(checkout):
    text, hint = only(installed.check_checkout, checkout, "warning")
    assert str(checkout.root / "src" / "isodense") in text
    assert "--editable" in hint
    here = Project(Path(params.__file__).parents[3])
    assert [one.level for one in installed.check_checkout(here)] == ["ok"]


def test_another_python_on_the_path(checkout, monkeypatch, tmp_path):
    only(installed.check_path, checkout, "ok")
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    text, hint = only(installed.check_path, checkout, "problem")
    assert str(other) in text
    assert "activate" in hint


# --- git and DVC ----------------------------------------------------------------------------------


def test_code_that_is_not_in_git(checkout):
    only(versioned.check_code, checkout, "ok")
    path = checkout.root / "src/isodense/density/estimate.py"
    path.write_text(path.read_text() + "# edited\n")
    text, hint = only(versioned.check_code, checkout, "warning")
    assert text == "src/isodense/density/estimate.py changed since the last commit"
    assert "commit" in hint
    path.unlink()
    assert "not there" in only(versioned.check_code, checkout, "problem")[0]
    checkout.run("git", "checkout", "-q", "--", ".")
    checkout.run("git", "rm", "-q", "--cached", "src/isodense/density/estimate.py")
    assert "not in git" in found(versioned.check_code, checkout, "problem")[0][0]
    checkout.run("git", "reset", "-q")


def test_a_folder_without_git(checkout, monkeypatch):
    (checkout.root / ".git").rename(checkout.root / "away")
    try:
        assert "no git repository" in only(versioned.check_code, checkout, "warning")[0]
    finally:
        (checkout.root / "away").rename(checkout.root / ".git")


def test_a_lock_that_is_behind_names_the_stages(checkout):
    checkout.set({"density.k": 20})
    text, hint = only(versioned.check_lock, checkout, "warning")
    assert text.startswith("density")
    assert "dvc repro" in hint
    (checkout.root / "dvc.yaml").write_text("stages: 3\n")
    assert "dvc.yaml" in only(versioned.check_lock, checkout, "problem")[0]


@pytest.mark.skipif(not ROOT, reason="links endanger the cache of root only")
def test_hardlinks_as_root(checkout):
    assert "copy" in only(versioned.check_links, checkout, "ok")[0]
    settings_file = checkout.root / ".dvc" / "config.local"
    settings_file.write_text("[cache]\n    type = hardlink,copy\n")
    text, hint = only(versioned.check_links, checkout, "problem")
    assert "hardlink" in text
    assert hint == "dvc config --local --unset cache.type && dvc checkout --relink"
    shutil.rmtree(checkout.root / "data/density")
    checkout.run("dvc", "checkout", "data/density")  # now linked
    settings_file.unlink()
    text, hint = only(versioned.check_links, checkout, "problem")
    assert "data/density/manifest.json still linked" in text
    checkout.run(*hint.split())  # the hint is one
    only(versioned.check_links, checkout, "ok")


def test_hardlinks_of_others_are_protected_by_dvc(checkout, monkeypatch):
    (checkout.root / ".dvc" / "config.local").write_text("[cache]\n    type = hardlink\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    only(versioned.check_links, checkout, "ok")


# --- remotes --------------------------------------------------------------------------------------


@pytest.fixture
def closed():
    """Give a port of the loopback interface on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class Refusing(http.server.BaseHTTPRequestHandler):
    """A store to which nobody has access."""

    def do_GET(self):
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def use(checkout, **urls):
    """Configure remotes, and no others."""
    sections = {f"remote \"{name}\"": one if isinstance(one, dict) else {"url": one}
                for name, one in urls.items()}  # fmt: skip
    lines = ["[core]", f"    remote = {next(iter(urls))}"]
    for name, settings_ in sections.items():
        lines += [f"['{name}']", *(f"    {key} = {value}" for key, value in settings_.items())]
        lines += ["    verify = true"]
    (checkout.root / ".dvc" / "config").write_text("\n".join(lines) + "\n")


def test_remotes_that_do_not_answer_refuse_or_lack_a_package(checkout, closed, refusing):
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    endpoint = f"http://127.0.0.1:{refusing}"
    use(
        checkout,
        ssh=f"ssh://127.0.0.1:{closed}/store",
        web=f"http://127.0.0.1:{closed}/store",
        s3={"url": "s3://bucket/store", "endpointurl": endpoint, **keys},
        gs="gs://bucket/store",
    )
    findings = {one.name: one for one in remotes.check_remotes(Project(checkout.root))}
    assert all(one.level == "problem" for one in findings.values())
    assert "does not answer" in findings["remote ssh"].text
    assert "does not answer" in findings["remote web"].text
    assert "refuses: Access Denied" in findings["remote s3"].text
    assert "dvc-gs" in findings["remote gs"].text
    assert findings["remote gs"].hint == "pip install 'isodense[gs]'"


def test_a_remote_that_says_nothing_is_given_up(checkout, monkeypatch):
    monkeypatch.setattr(remotes, "TIMEOUT", 2.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{silent.getsockname()[1]}/store"
        use(checkout, slow=url, other=url, third=url)
        start = time.monotonic()
        texts = [text for text, _ in found(remotes.check_remotes, checkout, "problem")]
        assert time.monotonic() - start < 5  # not two seconds for each
    assert len(texts) == 3
    assert all("has not answered within 2 s" in text for text in texts)


def test_passwords_in_addresses_are_not_shown(checkout, closed):
    use(checkout, web=f"http://me:s3cret@127.0.0.1:{closed}/store")
    text, _ = only(remotes.check_remotes, checkout, "problem")
    assert "s3cret" not in text
    assert f"http://127.0.0.1:{closed}/store" in text


def test_a_web_server_that_lists_nothing_is_known_by_what_dvc_lock_names(checkout, tmp_path):
    store = tmp_path / "store"
    use(checkout, storage=str(store))
    checkout.run("dvc", "push", "-q", "density")

    class Plain(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(store))

        def list_directory(self, path):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use(checkout, web=f"http://127.0.0.1:{server.server_port}")
        assert only(remotes.check_remotes, checkout, "ok")[0].endswith("answers")
        server.shutdown()


def test_a_folder_is_a_remote_before_and_after_the_first_push(checkout, tmp_path):
    store = tmp_path / "store"
    use(checkout, storage=str(store))
    assert "first dvc push" in only(remotes.check_remotes, checkout, "ok")[0]
    store.mkdir()
    (store / "files").mkdir()
    assert "answers, with files" in only(remotes.check_remotes, checkout, "ok")[0]
    settings_file = checkout.root / ".dvc" / "config"
    written = settings_file.read_text()
    settings_file.write_text(written.replace("verify = true", "verify = false"))
    text, hint = found(remotes.check_remotes, checkout, "warning")[0]
    assert "verify is off" in text
    assert hint == "dvc remote modify storage verify true"
    settings_file.write_text(written.replace("remote = storage", "remote = gone"))
    assert "'gone' is not configured" in found(remotes.check_remotes, checkout, "warning")[0][0]
    settings_file.write_text("")
    assert "there is none" in only(remotes.check_remotes, checkout, "warning")[0]


# --- space ----------------------------------------------------------------------------------------


def metrics(checkout, name, **values):
    path = checkout.root / f"reports/metrics/{name}.json"
    path.write_text(json.dumps({name: values}))


def test_a_run_that_does_not_fit_on_the_disk_or_into_memory(checkout):
    assert only(space.check_disk, checkout, "ok")
    assert len(found(space.check_memory, checkout, "ok")) == 2
    metrics(checkout, "prompts", unique=10**10)
    text, hint = only(space.check_disk, checkout, "problem")
    assert "TB" in text
    assert "dvc cache dir" in hint
    text, hint = found(space.check_memory, checkout, "problem")[0]
    assert text.startswith("neighbors takes about ")
    checkout.set({"train.completions_per_pass": 10**8})
    text, hint = found(space.check_memory, checkout, "problem")[1]
    assert text.startswith("train takes about ")
    assert "train.completions_per_pass" in hint


def test_training_all_weights_holds_four_times_as_much(checkout):
    def held():
        return space.training_bytes(Project(checkout.root), half=True)

    few, weights = held(), 4 * space.policy_parameters(Project(checkout.root))
    policy = checkout.root / "models/policy/model.safetensors"
    assert weights == pytest.approx(policy.stat().st_size, rel=0.2)  # float32, and a header
    checkout.set({"train.lora": None})
    assert held() - few == 3 * weights  # gradients and two moments


def test_the_cache_and_incomplete_folders(checkout, monkeypatch):
    assert "warning" not in {one.level for one in space.check_cache(Project(checkout.root))}
    cache = checkout.root / ".cache/isodense"
    old = cache / "old"
    old.write_bytes(b"x" * 3000)
    os.utime(old, (1, 1))
    assert "3.0 kB of it unused" in only(space.check_cache, checkout, "ok")[0]
    monkeypatch.setattr(space, "MUCH", 20_000)
    _, hint = only(space.check_cache, checkout, "warning")
    assert hint.startswith(f"rm -rf {cache}")
    old.unlink()
    assert found(space.check_incomplete, checkout) == []
    left = checkout.root / "data/density.tmp"
    left.mkdir()
    assert "data/density.tmp" in only(space.check_incomplete, checkout, "warning")[0]
    left.rmdir()


# --- the machine ----------------------------------------------------------------------------------


class Properties:
    total_memory = 80 * 10**9


def give_gpus(monkeypatch, count, bf16=True):
    """Let torch see GPUs, which cannot be had here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)


def test_devices(checkout, monkeypatch):
    give_gpus(monkeypatch, 0)
    only(hardware.check_device, checkout, "ok")
    checkout.set({"base.device": "cuda"})
    assert "sees no GPU" in only(hardware.check_device, checkout, "problem")[0]
    give_gpus(monkeypatch, 1)
    assert "1 x a GPU" in only(hardware.check_device, checkout, "ok")[0]
    give_gpus(monkeypatch, 4)
    text, hint = only(hardware.check_device, checkout, "problem")
    assert "4 GPUs" in text
    assert "ISODENSE_LAUNCH" in hint
    monkeypatch.setenv("ISODENSE_LAUNCH", "accelerate launch --num_processes 8")
    assert "8 processes for 4 GPUs" in only(hardware.check_device, checkout, "problem")[0]
    monkeypatch.setenv("ISODENSE_LAUNCH", "accelerate launch --num_processes=4")
    only(hardware.check_device, checkout, "ok")
    checkout.set({"base.device": "cpu"})
    only(hardware.check_device, checkout, "warning")


def test_a_gpu_without_bfloat16(checkout, monkeypatch):
    give_gpus(monkeypatch, 1, bf16=False)
    _, hint = only(hardware.check_dtype, checkout, "problem")
    assert "bf16: false" in hint
    checkout.set({"train.grpo": {"bf16": False, "fp16": True}})
    assert found(hardware.check_dtype, checkout) == []


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("able", "gain"), [("amx_bf16", "2.5"), ("avx512_bf16", "1.5"), ("avx2", None)]
)
def test_a_cpu_with_and_without_bfloat16(checkout, monkeypatch, precision, able, gain):
    give_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True})
    checkout.set({"embeddings.precision": precision})
    if bool(gain) == (precision == "bfloat16"):
        assert found(hardware.check_dtype, checkout) == []
    elif gain:
        assert f"about {gain} times" in only(hardware.check_dtype, checkout, "ok")[0]
    else:
        assert "on this CPU slower" in only(hardware.check_dtype, checkout, "warning")[0]


def test_training_that_does_not_fit_onto_the_gpu(checkout, monkeypatch):
    assert found(hardware.check_gpu_memory, checkout) == []
    give_gpus(monkeypatch, 1)
    assert "of 80 GB" in only(hardware.check_gpu_memory, checkout, "ok")[0]
    checkout.set({"train.completions_per_pass": 10**7, "train.lora": None})
    text, hint = only(hardware.check_gpu_memory, checkout, "problem")
    assert "all weights" in text
    assert "set train.lora" in hint


# --- results so far -------------------------------------------------------------------------------


def test_prompts_longer_than_training_takes(checkout):
    metrics(checkout, "embeddings", truncated_share=0.0)
    assert only(results.check_preflight, checkout, "ok")[0].endswith("are such as the stages take")
    checkout.set({"train.max_prompt_tokens": 60})
    text, hint = only(results.check_preflight, checkout, "warning")
    assert "would be skipped" in text
    assert hint == "raise train.max_prompt_tokens"
    checkout.set({"train.max_prompt_tokens": 8})
    only(results.check_preflight, checkout, "problem")
    metrics(checkout, "embeddings", truncated_share=0.3, padded="a window")
    (text, hint), *_ = found(results.check_left_out, checkout, "warning")
    assert text == "30.0% of the prompts cut at embeddings.max_tokens"
    assert hint.startswith("raise embeddings.max_tokens")
    assert "padded batches" in found(results.check_left_out, checkout, "ok")[0][0]


def test_what_a_stage_left_out_is_said(checkout):
    metrics(checkout, "download", bad_rows=3, examples=97, unusable={})
    metrics(checkout, "prompts", no_text=2)
    said = [text for text, _ in found(results.check_left_out, checkout, "warning")]
    assert said[:2] == ["3 rows left out: malformed (3.0%)", "2 examples without text left out"]


def test_weights_that_were_edited_or_swapped_are_named(checkout):
    """Of the same size, and as whole artifacts with manifests of their own."""
    assert only(results.check_artifacts, checkout, "ok")[0] == (
        "all 11 hold what their manifests say"
    )
    folder = checkout.root / "data/density"
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / "density_weights.npy"
    weights = np.load(path)
    path.chmod(0o644)
    np.save(path, weights[::-1])
    ((text, hint),) = found(results.check_artifacts, checkout, "problem")
    assert text.endswith("density_weights.npy is damaged: its SHA-256 is not the manifest's")
    assert "dvc checkout" in hint
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["inputs"]["neighbors"] = "0" * 64
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reseal(folder)
    said = [text for text, _ in found(results.check_artifacts, checkout, "warning")]
    assert "density was made from another neighbors than is here" in said
    assert "grpo was made from another density than is here" in said
    for name, content in kept.items():
        (folder / name).write_bytes(content)


def test_a_repository_of_another_user_is_said_with_the_remedy(checkout, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    text, hint = only(versioned.check_code, checkout, "problem")
    assert text == (
        f"git reads nothing of {checkout.root}, which another user owns (dubious ownership)"
    )
    assert hint == f"git config --global --add safe.directory {checkout.root}"


def test_more_tokens_than_the_policy_reads(checkout):
    checkout.set({"train.max_prompt_tokens": 250})
    text, hint = only(results.check_preflight, checkout, "problem")
    assert text.endswith("= 258, the policy reads 256")
    assert hint == "let them sum to 256 at most"


def rewrite(folder, kind, **changes):
    manifest = read_manifest(folder, kind)
    for name in ("format_version", "kind", "files"):
        del manifest[name]
    write_manifest(folder, kind, **(manifest | changes))


def test_a_reward_no_better_than_length(checkout):
    folder = checkout.root / "models/reward"
    kept = (folder / "manifest.json").read_bytes()
    try:
        weak = {"heldout": 0.6, "heldout_low": 0.5, "heldout_high": 0.7, "length_only": 0.7}
        rewrite(folder, "reward", check=weak | {"over_length_low": -0.2})
        text, hint = only(results.check_reward, checkout, "problem")
        assert "60.0%" in text
        assert "train.on_weak_reward" in hint
        checkout.set({"train.on_weak_reward": "warn"})
        only(results.check_reward, checkout, "warning")
        rewrite(folder, "reward", check=None)
        assert found(results.check_reward, checkout) == []
    finally:
        (folder / "manifest.json").write_bytes(kept)


@pytest.mark.parametrize(("clean", "level"), [(100, "ok"), (96, "ok"), (90, "warning")])
def test_held_out_prompts_that_training_holds(checkout, clean, level):
    metrics(checkout, "density", heldout={"prompts": 100, "near_duplicates": 3, "clean": clean})
    text, hint = only(results.check_leakage, checkout, level)
    assert text == f"{100 - clean} of 100 held-out prompts have near-duplicates in training"
    assert bool(hint) == (level == "warning")
    metrics(checkout, "density")
    assert found(results.check_leakage, checkout) == []


def test_neighbours_below_the_floor(checkout):
    folder = checkout.root / "data/neighbors"
    kept = (folder / "manifest.json").read_bytes()
    try:
        rewrite(folder, "neighbors", recall=0.5, method="ivf")
        text, _ = only(results.check_recall, checkout, "problem")
        assert "50.0%" in text
        assert "ivf" in text
    finally:
        (folder / "manifest.json").write_bytes(kept)
    only(results.check_recall, checkout, "ok")

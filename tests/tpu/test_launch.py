"""The launch files under tpu/, as far as they can be checked without a cloud: fakes stand for it.

What the fakes do is what the real programs do: srun and scancel of Slurm 22.05 (SIGTERM to srun
kills its tasks, a signal by scancel reaches them), gcloud 528 (tpu-vm ssh exits with the first
worker's code that isn't 0).
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tpu"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
TRAIN = ["jcl", "run", "eras", "--method", "ewc(strength=1.) + er(rows=2)", "--out", "/out/a"]

# What a user must say, by script; the rest has defaults.
NEEDED = {
    "queued_resource": {"PROJECT": "p", "ZONE": "z", "NAME": "n", "BUCKET": "b"},
    "jobset": {"NAME": "eras", "IMAGE": "i", "BUCKET": "b", "SERVICE_ACCOUNT": "s"},
    "xpk": {"PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "NAME": "n", "IMAGE": "i", "STORAGE": "s"},
    "slurm": {"VENV": str(Path(sys.prefix)), "SLURM_JOB_ID": "17"},
}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """PATH with the fakes first, HOME, FAKE (their folder) and the variables; nothing of ours."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "FAKE": str(folder), **variables}


def run(
    script: str, *command: str, env: dict[str, str], root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    call = ["bash", str(FOLDER / f"{script}.sh"), *command]
    return subprocess.run(call, env=env, cwd=root, capture_output=True, text=True, timeout=60)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_shellcheck_has_nothing_to_say(path: Path) -> None:
    checker = Path(sys.executable).parent / "shellcheck"
    call = [checker, "--external-sources", "--source-path", ROOT, path]
    shown = subprocess.run(call, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in NEEDED for name in NEEDED[script]]
)
def test_an_empty_variable_is_refused_by_name(script: str, name: str, tmp_path: Path) -> None:
    for tool in ("gcloud", "kubectl", "xpk", "srun"):
        program(tmp_path, tool, f'echo {tool} >>"$FAKE/called"')
    variables = NEEDED[script] | {name: ""}
    shown = run(script, *TRAIN, env=environment(tmp_path, **variables))
    assert shown.returncode == 2 and not lines(tmp_path / "called")
    assert shown.stderr.startswith(f"tpu/{script}.sh: {name} is empty; ")
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("script", list(NEEDED))
def test_a_missing_command_is_refused(script: str, tmp_path: Path) -> None:
    shown = run(script, env=environment(tmp_path, **NEEDED[script]))
    assert shown.returncode == 2 and "there is no command" in shown.stderr


# Flags


def sourced(kind: str, show: str, **variables: str) -> subprocess.CompletedProcess[str]:
    call = ["bash", "-c", f'. tpu/flags.sh {kind} && echo "${show}"']
    env = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(call, env=env, cwd=ROOT, capture_output=True, text=True)


def test_jaxlib_knows_every_flag_for_gpus() -> None:
    """It reads flags for every platform, and ends the program at one that it doesn't know."""
    flags = sourced("gpu", "XLA_FLAGS").stdout.strip()
    assert "latency_hiding" in flags
    code = [sys.executable, "-c", "import jax; jax.devices()"]
    for given, known in ((flags, True), (flags + " --xla_gpu_enable_no_such_thing=true", False)):
        env = os.environ | {"XLA_FLAGS": given, "JAX_PLATFORMS": "cpu"}
        shown = subprocess.run(code, env=env, capture_output=True, text=True)
        assert (shown.returncode == 0) == known, shown.stderr


def test_libtpu_knows_every_flag_for_tpus() -> None:
    library = Path(pytest.importorskip("libtpu").__file__).parent / "libtpu.so"
    names = re.findall(r"--(\w+)=", sourced("tpu", "LIBTPU_INIT_ARGS").stdout)
    content = library.read_bytes()
    assert len(names) == 7
    assert not [name for name in names if name.encode() not in content]


def test_a_users_own_flags_come_last_and_win() -> None:
    mine = "--xla_gpu_enable_latency_hiding_scheduler=false"
    assert sourced("gpu", "XLA_FLAGS", XLA_FLAGS=mine).stdout.strip().endswith(mine)
    fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert sourced("gpu", fraction, **{fraction: "0.5"}).stdout.strip() == "0.5"


def test_flags_for_something_else_are_refused() -> None:
    shown = sourced("npu", "XLA_FLAGS")
    assert shown.returncode == 2 and "'npu' is no accelerator" in shown.stderr


# GKE


def places(value: Any, at: str = "") -> dict[str, Any]:
    """The leaves of a document by their path."""
    if isinstance(value, dict) and value:
        pairs = [(f"{at}/{key}", one) for key, one in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(f"{at}/{index}", one) for index, one in enumerate(value)]
    else:
        return {at: value}
    return {path: leaf for name, one in pairs for path, leaf in places(one, name).items()}


def jobset_errors(document: dict[str, Any]) -> list[str]:
    """What JobSet's own schema finds: unknown names and wrong types, down to the containers.

    Kubeflow publishes pydantic models made from the OpenAPI schema of JobSet v1alpha2.
    """
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
    from pydantic import ValidationError

    try:
        model = JobsetV1alpha2JobSet.from_dict(document)
    except ValidationError as error:
        return [str(error)]
    assert model is not None
    kept = places(model.to_dict())
    return [path for path, leaf in places(document).items() if kept.get(path, ...) != leaf]


def filled(folder: Path, *command: str, **variables: str) -> dict[str, Any]:
    env = environment(folder, DRY="yes", **(NEEDED["jobset"] | variables))
    shown = run("jobset", *(command or TRAIN), env=env)
    assert shown.returncode == 0, shown.stderr
    assert not re.search(r"\$\{", re.sub(r"#.*", "", shown.stdout))
    return yaml.safe_load(shown.stdout)


def test_the_jobset_fits_its_schema(tmp_path: Path) -> None:
    assert jobset_errors(filled(tmp_path)) == []


def test_the_schema_finds_what_is_wrong(tmp_path: Path) -> None:
    document = filled(tmp_path)
    document["spec"]["failurePolicy"]["maxRestart"] = 3
    assert jobset_errors(document) == ["/spec/failurePolicy/maxRestart"]
    document = filled(tmp_path)
    document["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] = "none"
    assert "backoffLimit" in jobset_errors(document)[0]


def test_only_final_exit_codes_end_the_jobset(tmp_path: Path) -> None:
    """75 and 76 match no rule of the pods: the job fails by its backoff limit; JobSet restarts."""
    spec = filled(tmp_path)["spec"]
    [rule] = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 100
    job = spec["replicatedJobs"][0]["template"]["spec"]
    [pods] = job["podFailurePolicy"]["rules"]
    assert pods["action"] == "FailJob" and pods["onExitCodes"]["operator"] == "In"
    assert pods["onExitCodes"]["values"] == [2, 3, 130] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    [container] = pod["containers"]
    assert pods["onExitCodes"]["containerName"] == container["name"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


@pytest.mark.parametrize(
    ("topology", "chips", "machines"), [("4x4", "4", 4), ("16x16", "4", 64), ("4x4x4", "4", 16)]
)
def test_there_is_a_pod_for_each_machine(
    topology: str, chips: str, machines: int, tmp_path: Path
) -> None:
    document = filled(tmp_path, TOPOLOGY=topology, CHIPS=chips, SLICES="2")
    [replicated] = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (machines, machines)
    assert job["completionMode"] == "Indexed" and replicated["replicas"] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOPOLOGY", "16"),
        ("TOPOLOGY", "4x4;ls"),
        ("CHIPS", "3"),
        ("SLICES", "0"),
        ("BUCKET", "gs://b"),
    ],
)
def test_a_bad_value_is_named(name: str, value: str, tmp_path: Path) -> None:
    env = environment(tmp_path, **(NEEDED["jobset"] | {name: value}))
    shown = run("jobset", *TRAIN, env=env)
    assert shown.returncode == 2 and name in shown.stderr and value in shown.stderr


def test_a_pod_runs_the_command_as_it_was_given(tmp_path: Path) -> None:
    """Spaces, brackets and quotes come through YAML and two shells; exec makes it process 1."""
    program(tmp_path, "shown", 'printf "%s\\n" "$@" "$PPID"')
    given = ["shown", "er(rows=2) + ewc(a=1.)", "it's $HOME", 'a "b" & c: #d']
    document = filled(tmp_path, *given)
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    call = container["command"] + container["args"]
    shown = subprocess.run(
        call, env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True
    )
    assert shown.stdout.splitlines() == [*given[1:], str(os.getpid())]


def test_kubectl_gets_what_dry_shows(tmp_path: Path) -> None:
    program(tmp_path, "kubectl", 'echo "$@" >"$FAKE/call"; cat >"$FAKE/document"')
    assert run("jobset", *TRAIN, env=environment(tmp_path, **NEEDED["jobset"])).returncode == 0
    assert lines(tmp_path / "call") == ["create -f -"]
    assert yaml.safe_load((tmp_path / "document").read_text()) == filled(tmp_path)


def test_xpk_restarts_on_our_exit_codes(tmp_path: Path) -> None:
    program(tmp_path, "xpk", 'printf "%s\\n" "$@" >"$FAKE/call"')
    env = environment(tmp_path, **NEEDED["xpk"], SPOT="yes")
    assert run("xpk", *TRAIN, env=env).returncode == 0
    call = lines(tmp_path / "call")
    assert call[:2] == ["workload", "create"] and "--spot" in call
    assert "--restart-on-exit-codes=75,76" in call and "--max-restarts=100" in call
    assert call[-1].endswith(
        r"exec jcl run eras --method ewc\(strength=1.\)\ +\ er\(rows=2\) --out /out/a"
    )


# Slurm

SRUN = r"""
while [[ $1 == --* ]]; do echo "$1" >>"$FAKE/srun.log"; shift; done
trap 'echo "forcing job termination" >>"$FAKE/srun.log"; kill -KILL $(cat "$FAKE"/pid.*)' TERM
pids=()
for index in 0 1; do
  SLURM_PROCID=$index SLURM_LOCALID=$index SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost \
    SLURM_STEP_NUM_NODES=1 "$@" &
  pids+=($!)
  echo $! >"$FAKE/pid.$index"
done
highest=0
for pid in "${pids[@]}"; do
  wait "$pid"
  code=$?
  ((code > highest)) && highest=$code
done
exit $highest
"""
SCANCEL = r"""
echo "$@" >>"$FAKE/scancel.log"
[[ $1 == --signal=TERM ]] && kill -TERM $(cat "$FAKE"/pid.*)
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    program(tmp_path, "srun", SRUN)
    program(tmp_path, "scancel", SCANCEL)
    program(tmp_path, "scontrol", 'echo "$@" >>"$FAKE/scontrol.log"')
    job = str(random.randrange(10**6))  # JAX takes its port from it
    return environment(tmp_path, **(NEEDED["slurm"] | {"SLURM_JOB_ID": job}))


def test_jax_finds_both_processes(slurm: dict[str, str], tmp_path: Path) -> None:
    """The real detection, and a real connection between the two, each with its own device."""
    code = (
        "import jax; jax.distributed.initialize();"
        "print(jax.process_index(), jax.process_count(), jax.device_count(), flush=True)"
    )
    shown = run("slurm", "python", "-c", code, env=slurm | {"JAX_PLATFORMS": "cpu"})
    assert shown.returncode == 0, shown.stderr
    assert sorted(shown.stdout.splitlines()) == ["0 2 2", "1 2 2"]
    assert lines(tmp_path / "srun.log") == ["--kill-on-bad-exit=0"]


def test_slurm_is_asked_for_one_process_per_gpu() -> None:
    """With fewer, GPUs idle; with --gpus-per-task, process 1 would look for device 1 among one."""
    asked = re.findall(r"^#SBATCH --(\S+)", (FOLDER / "slurm.sh").read_text(), re.MULTILINE)
    given = dict(item.split("=", 1) for item in asked if "=" in item)
    assert given["ntasks-per-node"] == given["gpus-per-node"] == "8"
    assert "gpus-per-task" not in given and "requeue" in asked
    assert given["signal"] == "B:TERM@60"


def test_sigterm_reaches_both_processes_and_requeues(slurm: dict[str, str], tmp_path: Path) -> None:
    program(
        tmp_path,
        "train",
        """trap 'sleep 0.2; echo saved >"$FAKE/saved.$SLURM_PROCID"; exit 75' TERM
        touch "$FAKE/ready.$SLURM_PROCID"
        while true; do sleep 0.05; done""",
    )
    call = ["bash", str(FOLDER / "slurm.sh"), "train"]
    with subprocess.Popen(call, env=slurm, cwd=ROOT, stderr=subprocess.PIPE, text=True) as script:
        until = time.monotonic() + 30
        while len(list(tmp_path.glob("ready.*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        script.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: does
        _, said = script.communicate(timeout=30)
    assert script.returncode == 75
    assert sorted(p.name for p in tmp_path.glob("saved.*")) == ["saved.0", "saved.1"]
    job = slurm["SLURM_JOB_ID"]
    assert lines(tmp_path / "scancel.log") == [f"--signal=TERM {job}"]
    assert lines(tmp_path / "scontrol.log") == [f"requeue {job}"]
    assert "forcing job termination" not in lines(tmp_path / "srun.log")
    assert f"the run saved and stopped (exit code 75); job {job} goes back" in said


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
        (75, 9, 1),
        (76, 19, 1),
        (76, 20, 0),
        (130, 0, 0),
        (137, 0, 1),
        (137, 20, 0),
    ],
)
def test_exit_codes_decide_about_the_queue(
    code: int, restarts: int, requeued: int, slurm: dict[str, str], tmp_path: Path
) -> None:
    # process 1 ends with the code, process 0 with 0: srun gives the highest
    env = slurm | {"SLURM_RESTART_COUNT": str(restarts)}
    shown = run("slurm", "bash", "-c", f"exit $(({code} * SLURM_PROCID))", env=env)
    assert shown.returncode == code
    assert len(lines(tmp_path / "scontrol.log")) == requeued


# TPU VM

GCLOUD = r"""
echo "$*" >>"$FAKE/gcloud.log"
case "$*" in
*"queued-resources list"*)
  state=$(cat "$FAKE/state" 2>/dev/null)
  echo "$state"
  [[ $state != WAITING_FOR_RESOURCES ]] || echo "${GRANTED:-ACTIVE}" >"$FAKE/state"
  ;;
*"queued-resources create"*) echo WAITING_FOR_RESOURCES >"$FAKE/state" ;;
*"queued-resources delete"*) rm "$FAKE/state" ;;
*" --command="*"exec jcl "*)  # the next run: its exit code, and what it leaves of the slice
  read -r code state <"$FAKE/runs"
  sed -i 1d "$FAKE/runs"
  echo "$state" >"$FAKE/state"
  exit "$code"
  ;;
*" --command="*) exit "${INSTALL:-0}" ;;
esac
"""


def on_tpus(
    folder: Path, *runs: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script with a gcloud whose runs end in turn as told, and its calls by verb."""
    program(folder, "gcloud", GCLOUD)
    (folder / "runs").write_text("".join(f"{one}\n" for one in runs))
    env = environment(folder, **NEEDED["queued_resource"], PAUSE="0", **variables)
    shown = run("queued_resource", *TRAIN, env=env)
    calls = (folder / "gcloud.log").read_text()
    verbs = re.findall(r"^compute tpus \S+ (create|delete|scp|ssh)|(exec jcl)", calls, re.MULTILINE)
    return shown, ["".join(verb) for verb in verbs]


def test_a_slice_is_made_used_and_deleted(tmp_path: Path) -> None:
    shown, calls = on_tpus(tmp_path, "0 ACTIVE")
    assert shown.returncode == 0, shown.stderr
    assert calls == ["create", "scp", "ssh", "ssh", "exec jcl", "delete"]
    said = (tmp_path / "gcloud.log").read_text()
    assert "--worker=all" in said and "--spot" not in said
    assert "queued-resources delete n --project=p --zone=z --force --quiet" in said  # asks nothing
    assert r"exec jcl run eras --method ewc\(strength=1.\)\ +\ er\(rows=2\) --out /out/a" in said
    assert not (tmp_path / "state").exists()


def test_it_goes_on_after_75_after_preemption_and_after_a_lost_process(tmp_path: Path) -> None:
    runs = ("75 ACTIVE", "255 SUSPENDED", "137 ACTIVE", "0 ACTIVE")
    shown, calls = on_tpus(tmp_path, *runs, SPOT="yes")
    assert shown.returncode == 0, shown.stderr
    made = ["create", "scp", "ssh"]
    again = ["ssh", "exec jcl"]
    assert calls == [*made, *again, *again, "delete", *made, *again, *again, "delete"]
    assert "--spot" in (tmp_path / "gcloud.log").read_text()


@pytest.mark.parametrize("code", [1, 2, 3, 130, 255])
def test_another_exit_code_ends_it_and_the_slice_is_deleted(code: int, tmp_path: Path) -> None:
    shown, calls = on_tpus(tmp_path, f"{code} ACTIVE")
    assert shown.returncode == code and calls[-1] == "delete"


def test_lost_processes_have_an_end(tmp_path: Path) -> None:
    shown, calls = on_tpus(tmp_path, *["76 ACTIVE"] * 9, RETRIES="2")
    assert shown.returncode == 76 and calls.count("exec jcl") == 3 and calls[-1] == "delete"


def test_a_refused_request_is_said_and_deleted(tmp_path: Path) -> None:
    shown, calls = on_tpus(tmp_path, GRANTED="FAILED")
    assert shown.returncode == 2 and calls == ["create", "delete"]
    assert "the request for n is FAILED" in shown.stderr


def test_a_failed_install_is_said_and_the_slice_deleted(tmp_path: Path) -> None:
    shown, calls = on_tpus(tmp_path, INSTALL="1")
    assert shown.returncode == 2 and calls == ["create", "scp", "ssh", "delete"]
    assert "jcl could not be installed on n" in shown.stderr


def test_a_silent_gcloud_deletes_what_it_may_have_made(tmp_path: Path) -> None:
    program(tmp_path, "gcloud", 'echo "$*" >>"$FAKE/calls"; exit 1')
    env = environment(tmp_path, **NEEDED["queued_resource"], PAUSE="0")
    shown = run("queued_resource", *TRAIN, env=env)
    assert shown.returncode == 2 and "gcloud doesn't answer" in shown.stderr
    assert "queued-resources delete n" in lines(tmp_path / "calls")[-1]
    assert "costs money: delete it by hand" in shown.stderr


def test_workers_get_all_that_the_package_is_built_from(tmp_path: Path) -> None:
    """The same list as the container's; and shells can read what is sent to them."""
    program(
        tmp_path,
        "gcloud",
        r"""case "$*" in
        *"queued-resources list"*) echo ACTIVE ;;
        *scp*) tar -tzf "$5" | cut -d/ -f1 | sort -u >"$FAKE/sent" ;;
        *--command=*) printf '%s\n' "${@: -1}" | sed 's/^--command=//' >>"$FAKE/remote" ;;
        esac""",
    )
    env = environment(tmp_path, **NEEDED["queued_resource"], PAUSE="0")
    assert run("queued_resource", *TRAIN, env=env).returncode == 0
    copied = re.findall(r"^COPY (.+) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert lines(tmp_path / "sent") == sorted(" ".join(copied).split())
    subprocess.run(["bash", "-n", tmp_path / "remote"], check=True)
    checker = [Path(sys.executable).parent / "shellcheck", "--shell=bash", "--exclude=SC1091"]
    shown = subprocess.run([*checker, tmp_path / "remote"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout


# The container


def test_the_container_is_built_from_what_there_is() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in sources.split())
    [kinds] = re.findall(r'case "\$ACCELERATOR" in (\S+)\)', text)
    assert set(kinds.split("|")) <= set(metadata.metadata("jax").get_all("Provides-Extra") or [])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "text" in project["optional-dependencies"]


# The way there


def test_the_readme_can_be_copied(tmp_path: Path) -> None:
    """Its blocks are one script: every variable is set above its use, every file is there."""
    text = (FOLDER / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    script = tmp_path / "readme.sh"
    script.write_text("#!/bin/bash\n" + "\n".join(blocks))
    # SC2034: what is set for one command is read by our scripts
    checker = [Path(sys.executable).parent / "shellcheck", "--exclude=SC2034", script]
    shown = subprocess.run(checker, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout
    for found in re.finditer(r"\$\{?(\w+)", text):
        name = found.group(1)
        assert re.search(rf"\b{name}=|for {name} in", text[: found.start()]), name
    named = set(re.findall(r"(?: |^)tpu/(\w+\.\w+|Dockerfile)\b", text, re.MULTILINE))
    [table] = re.findall(r"^\| step .*?\n\n", text, re.MULTILINE | re.DOTALL)
    named |= set(re.findall(r"`(\w+\.\w+|Dockerfile)`", table))
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} >= named - {"plan.py"}
    assert {"jobset.yaml", "profiled.py", *(path.name for path in SCRIPTS)} <= named


def test_the_readme_gives_each_script_what_it_needs() -> None:
    text = (FOLDER / "README.md").read_text()
    first = text.partition("```bash\n")[2].partition("```")[0]
    for script, needed in NEEDED.items():
        for name in set(needed) - {"SLURM_JOB_ID"}:
            assert re.search(rf"\b{name}=\S", first), (script, name)

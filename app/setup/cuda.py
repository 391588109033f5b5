"""Which torch to install, and whether it works on the card that was found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from app.setup.installer import Installer, clean_environment, say

UV = "uv==0.13.9"  # picks the CUDA build; installed on machines with a card only


def find_gpus(run: Callable[..., Any] = subprocess.run) -> list[str]:
    """NVIDIA cards as "name, driver, capability"; [] without a card or a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        result = run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = result.stdout.splitlines() if result.returncode == 0 else []
    return [line.strip() for line in lines if line.count(",") >= 2]


def install_torch(python: str, torch: str, gpus: list[str], installer: Installer) -> str:
    """Install the pin `torch`: a CUDA build for a card, else what pip finds. Returns by which way.

    Raises SetupFailed if neither way gives one.
    """
    if gpus:
        say(f"NVIDIA card found ({gpus[0]}): installing a CUDA build of torch.")
        uv = [python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend=auto"]
        if (
            installer.run([python, "-m", "pip", "install", UV], "Preparing") == 0
            and installer.run([*uv, torch], "Installing torch for CUDA") == 0
        ):
            return "uv"
        say("The CUDA build could not be chosen automatically; taking what pip finds instead.")
    if installer.run([python, "-m", "pip", "install", torch], "Installing torch") != 0:
        raise installer.failure("torch")
    return "pip"


# A build for 8.6 runs on 8.9 as well: same major, minor not above the card's. PTX ("compute_")
# of any lower capability is compiled by the driver. The product decides; the list only explains.
SELF_TEST = """
import json, torch, warnings
note = {"torch": torch.__version__, "works": False, "why": ""}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    available = torch.cuda.is_available()
if torch.version.cuda is None:
    note["why"] = "this is a build of torch without CUDA"
elif not available:
    note["why"] = str(caught[-1].message).split(". ")[0] if caught else "torch sees no usable card"
else:
    card = torch.cuda.get_device_capability()
    built = [a.split("_") for a in torch.cuda.get_arch_list()]
    built = [(kind, divmod(int(n.rstrip("af")), 10)) for kind, n in built]
    fits = any(
        cap <= card if kind == "compute" else cap[0] == card[0] and cap <= card
        for kind, cap in built
    )
    try:
        x = torch.ones(64, 64, device="cuda")
        note["works"] = float((x @ x).sum()) == 64.0**3
        note["why"] = "" if note["works"] else "a product on the card came out wrong"
    except RuntimeError as error:
        note["why"] = str(error).splitlines()[0]
    if not note["works"] and not fits:
        note["why"] = "this torch was not built for cards of capability %d.%d" % card
print(json.dumps(note))
"""


def cuda_self_test(python: str, run: Callable[..., Any] = subprocess.run) -> tuple[bool, str]:
    """(works, one sentence) of a matrix product on the card with the installed torch."""
    result = run([python, "-c", SELF_TEST], capture_output=True, text=True, env=clean_environment())
    try:
        note = json.loads(result.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return False, f"torch does not start: {result.stderr.strip()[-200:]}"
    if note["works"]:
        return True, f"CUDA works (torch {note['torch']})."
    return False, (
        f"CUDA does not work (torch {note['torch']}): {note['why'].rstrip('.')}. Longread will run "
        "on the CPU; after a driver update, run `python launch.py --repair`."
    )

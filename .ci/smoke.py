"""Smoke test of an installed wheel: `python -I smoke.py CHECKOUT WHEEL`, run anywhere but in the checkout."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOMS = ("tokenization", "modeling", "objectives", "training", "conversion", "sharing", "cli")


def check_contents(checkout: Path, wheel: Path) -> None:
    """The wheel holds every room and data file of the checkout, and nothing else."""
    sources = [*checkout.glob("*.py"), checkout / "py.typed"]
    sources += [file for room in ROOMS for file in (checkout / room).rglob("*.py")]
    sources += [
        *checkout.glob("modeling/*.c"),
        *checkout.glob("model_cards/*.md"),
        *checkout.glob("model_cards/*.bib"),
    ]
    sources += checkout.glob("recipes/*.yaml")
    wanted = {f"heirloom/{file.relative_to(checkout).as_posix()}" for file in sources}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if wanted != found:
        sys.exit(
            f"missing in the wheel: {sorted(wanted - found)}; should not be there: {sorted(found - wanted)}"
        )


def check_import(checkout: Path) -> None:
    """The installed package is the one imported, and it comes without torch."""
    import heirloom

    if checkout in Path(heirloom.__file__).resolve().parents:
        sys.exit(f"{heirloom.__file__} lies in the checkout; this should be the wheel")
    if heavy := {"torch", "transformers"} & set(sys.modules):
        sys.exit(f"`import heirloom` brought {sorted(heavy)}")


def check_shell() -> None:
    """The command is installed and answers; recipes, as package data, are found."""
    command = Path(sys.executable).with_name("heirloom")
    for arguments in (["--help"], ["recipes"]):
        subprocess.run([command, *arguments], check=True, stdout=subprocess.DEVNULL)


def check_model() -> None:
    """A model and its tokenizer are saved in one folder and loaded by the Auto classes in another."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    import heirloom

    config = heirloom.ElmoConfig(
        char_filters=[[1, 4], [2, 4]],
        char_embedding_size=4,
        projection_size=8,
        cell_size=16,
        num_hidden_layers=2,
        num_highway_layers=1,
    )
    torch.manual_seed(0)
    model = heirloom.ElmoModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        heirloom.ElmoTokenizer.from_words(["Hello", "world"]).save_pretrained(folder)
        os.chdir(Path(folder).parent)
        loaded, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([["Hello", "world"]], is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors, same = model(**batch).last_hidden_state, loaded(**batch).last_hidden_state
    # Not `equal`: memory that is mapped from a file is aligned otherwise, and the last bit of a sum may differ.
    if vectors.shape != (1, 2, 16) or not torch.allclose(vectors, same, rtol=0, atol=1e-6):
        sys.exit(f"a saved {tuple(vectors.shape)} came back as {tuple(same.shape)} or with other numbers")
    if type(loaded) is not heirloom.ElmoModel or type(tokenizer) is not heirloom.ElmoTokenizer:
        sys.exit(f"the Auto classes made a {type(loaded)} and a {type(tokenizer)}")


checkout, wheel = (Path(argument).resolve() for argument in sys.argv[1:])
os.environ["HF_HUB_OFFLINE"] = "1"
check_contents(checkout, wheel)
check_import(checkout)
check_shell()
check_model()

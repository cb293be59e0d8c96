"""`heirloom env`: what to paste into a bug report."""


def env() -> None:
    """Print versions, machine, threads and which way ELMo's LSTMs take.

    Example: heirloom env
    """
    import importlib.metadata
    import platform

    import torch

    from .. import __version__
    from ..modeling.lstmp_paths import describe_paths

    print(f"heirloom      {__version__}")
    print(f"Python        {platform.python_version()} on {platform.platform()}")
    for name in (
        "torch",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "datasets",
        "accelerate",
        "numpy",
        "h5py",
    ):
        try:
            print(f"{name:<13} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:<13} not installed")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"CPU threads   {torch.get_num_threads()}\nCUDA device   {device}")
    print(f"lstmp         {describe_paths()}")

"""A model of transformers as a folder, and single files of weights: where they are, fetched from the hub if they have to be."""

from pathlib import Path

from workbench.models.diffusers_folder import HUB, fetching, read_settings

HEAD = "config.json"
"""The file that says what a network is made of."""

_SMALL = ("*.json", "*.txt")  # settings and vocabularies
_WEIGHTS = "model*.safetensors"


def expect_libraries(what: str) -> None:
    """Raise ModuleNotFoundError, saying how to install it, where a library is missing that `what` needs."""
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401  # diffusers comes without it, and without the text encoders then
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}, which is not installed: pip install flow-map-workbench[models]", name=error.name
        ) from error


def transformers_folder(source: str, setting: str, *, weights: bool = True, offline: bool = False) -> Path:
    """The folder of a model.

    Args:
        source: a folder, or the id of a model on the hub, from where it is fetched once.
        setting: the key that names it in a configuration, for messages.
        weights: whether its weights are needed besides its settings and vocabularies.
        offline: take only what has been fetched before.
    Raises: ValueError: if it is missing, gated, cannot be reached or is no model of transformers; says what to do.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not HUB.fullmatch(source):
            raise ValueError(
                f"{setting} = {source!r} is no folder; name one with a {HEAD} in it, or a model of the hub such as "
                "'openai/clip-vit-large-patch14'"
            )
        from huggingface_hub import hf_hub_download, snapshot_download

        with fetching(source, setting, f"{source} on the hub has no {HEAD}, so it is no model of transformers"):
            hf_hub_download(source, HEAD, local_files_only=offline)
            patterns = [*_SMALL, *([_WEIGHTS] if weights else [])]
            folder = Path(snapshot_download(source, allow_patterns=patterns, local_files_only=offline))
    read_settings(folder / HEAD, f"{folder} holds no model of transformers: it has no {HEAD}; let {setting} name one that has it")
    if weights and not any(folder.glob(_WEIGHTS)):
        raise ValueError(f"{folder} has no model.safetensors, and weights in other files are not read; fetch it again")
    return folder


def hub_file(source: str, setting: str, *, offline: bool = False) -> Path:
    """A single file.

    Args:
        source: its path, or OWNER/MODEL/FILE for one on the hub, from where it is fetched once.
        setting: the key that names it in a configuration, for messages.
    Raises: ValueError: if it is missing, gated or cannot be reached; says what to do.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    model, name = _parted(source)
    if not name:
        raise ValueError(f"{setting} = {source!r} is no file; name one, or write OWNER/MODEL/FILE for a file on the hub")
    from huggingface_hub import hf_hub_download

    with fetching(model, setting, f"{model} on the hub has no file {name}"):
        return Path(hf_hub_download(model, name, local_files_only=offline))


def cached_files(source: str) -> tuple[Path, ...]:
    """The files of weights of a folder, of a model or of OWNER/MODEL/FILE that are on this machine already; asks nobody."""
    path = Path(source).expanduser()
    if path.is_file():
        return (path,)
    if path.is_dir():
        return tuple(sorted(path.glob(_WEIGHTS)))
    from huggingface_hub import try_to_load_from_cache

    model, name = _parted(source)
    if name:
        found = try_to_load_from_cache(model, name)
        return (Path(found),) if isinstance(found, str) else ()
    head = try_to_load_from_cache(source, HEAD) if HUB.fullmatch(source) else None
    return tuple(sorted(Path(head).parent.glob(_WEIGHTS))) if isinstance(head, str) else ()


def _parted(source: str) -> tuple[str, str]:
    """OWNER/MODEL/FILE -> the model's id and the file; the file is empty where the text is nothing of the kind."""
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    model = f"{owner}/{name}"
    return (model, file) if file and HUB.fullmatch(model) else (source, "")

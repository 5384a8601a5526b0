"""MkDocs' hook: what the pages of docs/ point to elsewhere in the repository becomes a part of the site.

Documents keep their one place beside the code they explain, with links as the repository has them. The site has a page for each: a
document as it is, a source file as code, a folder as a list of its files. The page of an op is docs/ops/<op>.md, then the README of its
folder, then its reference. `<!-- generated: NAME -->` is replaced by what the library says of itself when the site is built.
"""

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
IMAGES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".cu": "cpp", ".cuh": "cpp", ".json": "json", ".toml": "toml", ".yml": "yaml"}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
GENERATED = re.compile(r"<!-- generated: (\w+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Add what is linked from the pages, and what is linked from there, as far as it leads."""
    waiting = list(DOCS.rglob("*.md")) + [ROOT / uri.removeprefix("repository/") for uri in nav_uris(config.nav)]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        uri = uri_of(path)
        if files.get_file_from_path(uri) is None:
            content = {"abs_src_path": str(path)} if path.suffix in IMAGES else {"content": page_of(path)}
            files.append(File.generated(config, uri, **content))
        if path.suffix == ".md":
            waiting += [target for link in links(path.read_text()) if (target := target_of(path, link)) is not None]
            waiting += [path.with_name("reference.py")] if is_op_readme(path) else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    uri = page.file.src_uri
    own = ROOT / uri.removeprefix("repository/") if uri.startswith("repository/") else DOCS / uri
    if own.suffix == ".md" and own.exists():
        markdown = rebased(markdown, own, uri)
    if uri.startswith("ops/"):
        markdown += the_rest_of_an_op(Path(uri).stem, uri)
    return GENERATED.sub(lambda match: GENERATORS[match[1]](), markdown)


def nav_uris(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav] if nav.startswith("repository/") else []
    return [uri for entry in (nav.values() if isinstance(nav, dict) else nav) for uri in nav_uris(entry)]


def links(text: str) -> list[str]:
    return [link for i, part in enumerate(CODE.split(text)) if i % 2 == 0 for link in LINK.findall(part) if "://" not in link]


def target_of(document: Path, link: str) -> Path | None:
    path = Path(os.path.normpath(document.parent / link))
    if not path.exists():
        return None
    return path / "README.md" if (path / "README.md").exists() else path


def is_op_readme(path: Path) -> bool:
    return path.name == "README.md" and path.parent.parent == ROOT / "vtkernels" / "ops"


def uri_of(path: Path) -> str:
    """Where the site has what the repository has at a path."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if is_op_readme(path):
        return f"ops/{path.parent.name}.md"
    inside = f"repository/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{inside}/index.md"
    return inside if path.suffix in {".md", *IMAGES} else f"{inside}.md"


def page_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return title + "\n".join(f"- `{entry.name}`" for entry in sorted(path.iterdir()) if entry.name[0] not in "._")
    return f"{title}````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n````\n"


def rebased(text: str, document: Path, uri: str) -> str:
    """The document with its links as the site has them, seen from the page `uri`."""

    def replaced(match: re.Match) -> str:
        target = None if "://" in match[0] else target_of(document, match[0])
        return match[0] if target is None else posixpath.relpath(uri_of(target), posixpath.dirname(uri) or ".")

    return "".join(part if i % 2 else LINK.sub(replaced, part) for i, part in enumerate(CODE.split(text)))


def the_rest_of_an_op(name: str, uri: str) -> str:
    folder = ROOT / "vtkernels" / "ops" / name
    _, _, story = (folder / "README.md").read_text().partition("\n")
    return f"\n\n{rebased(story, folder / 'README.md', uri)}\n\n## The definition\n\n```python\n{(folder / 'reference.py').read_text()}```\n"


def recipes() -> str:
    from vtkernels.recipes import describe_recipe, get_recipe, list_recipes

    lines = ["| recipe | model | data | what it is |", "| --- | --- | --- | --- |"]
    for name in list_recipes():
        recipe = get_recipe(name)
        lines.append(f"| `{name}` | `{recipe.model.name}` | {recipe.data.name} | {describe_recipe(name)} |")
    return "\n".join(lines)


def models() -> str:
    import vtkernels

    lines = ["| model | parameters | multiply-adds | published top-1 | source |", "| --- | --- | --- | --- | --- |"]
    for name in vtkernels.list_models():
        info = vtkernels.model_info(name)
        macs, top1 = (f"{info.gmacs:g} G" if info.gmacs else "", f"{info.top1:g} %" if info.top1 else "")
        lines.append(f"| `{name}` | {info.parameters / 1e6:.1f} M | {macs} | {top1} | {info.source or ''} |")
    return "\n".join(lines)


def analyses() -> str:
    from vtkernels.analysis import ANALYSES

    return "\n".join(["| analysis | what it answers |", "| --- | --- |", *(f"| `{name}` | {question} |" for name, question in ANALYSES.items())])


GENERATORS: dict[str, Callable[[], str]] = {"recipes": recipes, "models": models, "analyses": analyses}

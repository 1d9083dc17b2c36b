"""Chat templates run in a sandbox that also bounds their work and their memory.

A chat template is a program that comes with somebody's model. Jinja's sandbox keeps it from reaching Python; it doesn't
keep it from looping for a day or from doubling a text forty times. Here everything that can take time or grow is
counted against a budget, which is the same on every machine (no clock): rounds of loops, calls, filters, the entries of
lists that are put together, and every 1024 characters that are looked at. What would make a text of more than
`MAX_TEXT` characters is refused before it is made.

What templates may use is what `transformers` gives them (`chat_template_utils.py`): its settings of Jinja, `tojson`,
`raise_exception`, `namespace`, `dict`, `strftime_now` (of a pinned date) and the `generation` block; filters and
methods that no template needs and that can grow without bound are left out.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_eval_context
from jinja2.visitor import NodeTransformer

from aloe.errors import AloeError
from aloe.models.template_budget import MAX_TEXT, WORK, Budget, TooMuch

MAX_SOURCE = 1 << 20  # characters of a template; the longest in use have tens of thousands
CALL = 4  # units of a call or a filter
MAX_WIDTH = 10_000  # of padding and number formats
MAX_BITS = 4096  # of a whole number
FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique",
    "upper", "wordcount",
)  # fmt: skip
_WIDE = re.compile(r"\d{5,}|\*")


class _Namespace(Namespace):
    """A namespace whose names don't begin with `_`, and which is never written out."""

    def __init__(*args: Any, **values: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **values)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace can't hold {name!r}")


class _Dict:
    """`dict` and `dict.fromkeys`, without the type behind them."""

    def __init__(self, held: Callable[[Any], Any]) -> None:
        self._held = held

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._held(dict(*args, **kwargs))

    def fromkeys(self, *args: Any) -> Any:
        return self._held(dict.fromkeys(*args))


class _Generation(Extension):
    """`{% generation %}` marks what the assistant writes, for those who ask where it stands; its text is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_whole"), [], [], body).set_lineno(line)

    def _whole(self, caller: Callable[[], str]) -> str:
        return caller()


class _Counting(NodeTransformer):
    """Puts a counter before each loop and around all that makes or compares values."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes).set_lineno(node.lineno), "_concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_held") if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_held") if node.ctx == "load" and node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_held") if node.items else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.expr, nodes.Const):
            node.expr = _filtered(node.expr, "_held")
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = _filtered(operand.expr, "_held")
        return node


def _filtered(node: Any, name: str) -> nodes.Expr:
    found = nodes.Filter(node, name, [], [], None, None)
    found.set_lineno(node.lineno)
    return found


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, every operation counted."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, today: datetime) -> None:
        self.budget = Budget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self._shown
        )
        known = dict(self.filters)
        self.filters.clear()
        self.filters.update({name: self._counting(known[name]) for name in FILTERS})
        self.filters["replace"] = self._replace
        self.filters["join"] = self._joining(known["join"])
        self.filters["indent"] = self._counting(known["indent"], self._check_indent)
        self.filters["tojson"] = self._tojson
        self.filters |= {"_counted": self._counted, "_concat": self._concat, "_held": self._held}
        self.globals.update(
            raise_exception=_raise, namespace=_Namespace, dict=_Dict(self._held),
            strftime_now=lambda form: today.strftime(self._format(str(form))),
        )  # fmt: skip
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)

    # -- what is counted ------------------------------------------------------------------------------------------

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """Texts put together, unless they are too long."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            if size > MAX_TEXT:
                self.budget.fits(size)
            found.append(part)
        self.budget.fits(size)
        return "".join(found)

    def _shown(self, value: Any) -> Any:
        """A value that is about to be written."""
        if isinstance(value, str):
            self.budget.spend(1 + len(value) // 1024)
        else:
            self._held(value)
        return value

    def _held(self, value: Any) -> Any:
        """A value that was put together or is compared."""
        self.budget.fits(self.budget.weigh(value))
        return value

    def _counted(self, values: Any) -> Any:
        """What a loop goes through."""
        try:
            count = len(values)
        except TypeError:
            return self._each(iter(values))
        self.budget.spend(count + 1)
        return values

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.spend(1)
            yield value

    def _concat(self, parts: list[Any]) -> str:
        self._held(parts)
        return self.concat(map(str, parts))

    def _counting(self, function: Callable[..., Any], check: Callable[..., None] | None = None) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                if isinstance(value, str | bytes | list | tuple | dict):
                    self._held(value)
            self.budget.spend(CALL)
            if check is not None:
                check(*[a for a in args if a is not self and type(a).__name__ != "EvalContext"], **kwargs)
            found = function(*args, **kwargs)
            if isinstance(found, str):
                self.budget.fits(len(found))
            return self._each(found) if isinstance(found, Iterator) else found

        return counted

    # -- what can grow ----------------------------------------------------------------------------------------------

    def _joining(self, join: Callable[..., str]) -> Callable[..., str]:
        @pass_eval_context
        def joined(context: Any, values: Any, d: Any = "", attribute: Any = None) -> str:
            if not isinstance(values, str | list | tuple | dict):
                values = list(self._each(iter(values)))
            self.budget.spend(CALL)
            self.budget.fits(self.budget.weigh(values) + len(values) * len(str(d)))
            return join(context, values, d, attribute)

        return joined

    def _check_indent(self, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
        step = len(width) if isinstance(width, str) else int(width)
        self.budget.fits(len(str(text)) + (str(text).count("\n") + 1) * min(max(step, 0), MAX_TEXT))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        return self._replaced(str(text), str(old), str(new), -1 if count is None else int(count))

    def _replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        times = text.count(old) if count < 0 else min(count, text.count(old))
        self.budget.fits(len(text) + times * len(new))
        return text.replace(old, new, count)

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        self._held(value)
        if indent is not None and (len(indent) if isinstance(indent, str) else int(indent)) > 16:
            raise TooMuch("JSON is indented by more than 16")
        found = json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )  # fmt: skip
        self.budget.fits(len(found))
        return found

    def _format(self, form: str) -> str:
        if _WIDE.search(form):
            raise TooMuch("a format pads to more than 9999 characters")
        return form

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.spend(1)
        if operator == "%" and isinstance(left, str | bytes):
            self._format(left if isinstance(left, str) else left.decode("latin-1"))
            self.budget.fits(len(left) + left.count("%" if isinstance(left, str) else b"%") * self.budget.weigh(right))  # type: ignore[arg-type]
        elif operator == "+" and not isinstance(left, int | float):
            self.budget.fits(self.budget.weigh(left) + self.budget.weigh(right))
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and (_bits(left) > 64 or _bits(right) > 6):
            raise TooMuch("a power of too large a number")
        return super().call_binop(context, operator, left, right)

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int | float) and isinstance(right, int | float):
            if _bits(left) + _bits(right) > MAX_BITS:
                raise TooMuch("too large a number")
            return
        times, value = (left, right) if isinstance(left, int) else (right, left)
        self.budget.fits(max(self.budget.weigh(value), 1) * max(int(times), 0))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, slice) and isinstance(obj, str | list | tuple):
            self.budget.spend(1 + len(obj) // 1024)
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self = __self
        self.budget.spend(CALL)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if hasattr(__obj, "__wrapped__"):  # a text's `format`, as the sandbox hands it out
            owner = getattr(__obj.__wrapped__, "__self__", None)
        if isinstance(owner, int | float | complex | bytes | bytearray):
            raise SecurityError(f"{type(owner).__name__}.{name} is not for templates")
        for value in (owner, *args, *kwargs.values()):
            if isinstance(value, str | list | tuple | dict):
                self._held(value)
        if isinstance(owner, str):
            args = self._checked(owner, name, args, kwargs)
        found = super().call(__context, __obj, *args, **kwargs)
        if isinstance(found, str | list | tuple):
            self._held(found)
        return found

    def _checked(self, owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Arguments of a text's method that won't make too long a text of it."""
        if name == "replace":
            old, new = str(args[0]), str(args[1])
            self.budget.fits(len(owner) + owner.count(old) * len(new))
        elif name == "join" and args:
            values = args[0] if isinstance(args[0], list | tuple) else list(self._each(iter(args[0])))
            self.budget.fits(self.budget.weigh(values) + len(values) * len(owner))
            return (values, *args[1:])
        elif name in ("format", "format_map"):
            self._format(owner)
            given = (*args, *kwargs.values())
            if any(isinstance(v, int) and abs(v) > MAX_WIDTH for v in given) and ":{" in owner.replace(" ", ""):
                raise TooMuch("a format pads to more than 9999 characters")
            self.budget.fits(len(owner) + owner.count("{") * sum(self.budget.weigh(v) for v in given))
        elif name in ("ljust", "rjust", "center", "zfill"):
            if args and int(args[0]) > MAX_WIDTH + len(owner):
                raise TooMuch("a text is padded to more than 10000 characters")
        elif name in ("expandtabs", "translate", "maketrans"):
            raise SecurityError(f"str.{name} is not for templates")
        return args


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _raise(message: Any) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(str(message)[:2000])


class BoundedTemplate:
    """A chat template that ends: `render` gives its text or raises what Jinja has to say.

    Raises:
        AloeError: (here or in `render`) it would take too long or make too long a text; (here) it can't be read.
    """

    def __init__(self, source: str, today: datetime, where: str) -> None:
        self._made_of, self._where = (source, today, where), where
        try:
            if len(source) > MAX_SOURCE:
                raise TooMuch(f"it has {len(source):,} characters; at most {MAX_SOURCE:,} are read")
            env = self._env = _Environment(today)
            env.budget.left = WORK  # constants are computed while it is compiled
            code = env.compile(_Counting().visit(env.parse(source)))
            self._template = Template.from_code(env, code, env.make_globals(None))
        except TooMuch as cause:
            raise _stopped(cause, where) from None
        except Exception as cause:  # of Jinja, or of Python where a template nests too deeply
            told, fix = " ".join(str(cause).split())[:200], "mend chat_template.jinja"
            raise AloeError(f"the chat template can't be read: {told}", where=where, fix=fix) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundedTemplate, self._made_of  # it goes to worker processes as its source

    def render(self, **values: Any) -> str:
        """The text for these values, within the budget."""
        self._env.budget.left = WORK
        try:
            return self._template.render(**values)
        except TooMuch as cause:
            raise _stopped(cause, self._where) from None


def _stopped(cause: TooMuch, where: str) -> AloeError:
    fix = "read the template before you use this model: one that is written in good faith takes a thousandth of that"
    return AloeError(f"the chat template was stopped: {cause.message}", where=where, fix=fix)

"""What a client sends: a form, a bare picture or JSON, read within limits and checked.

All three carry the same fields. Text fields may stand in the query too, which is the only place a bare picture
has for them. Nothing unknown, nothing twice with different values, and all mistakes are named together. What is
empty in a form, or null in JSON, counts as left out.
"""

import binascii
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.problems import BadRequestError, InvalidFieldsError, TooLargeError
from server.schemas import DECIMAL

F = TypeVar("F", bound=BaseModel)

FORM, JSON, PICTURE = "multipart/form-data", "application/json", "image/*"
ACCEPTED = (FORM, PICTURE, JSON)

# Bounds of the form, or of the JSON, around the pictures: more than any honest request has.
MAX_FIELDS = 32
MAX_TEXT_BYTES = 64 * 1024
MAX_BRACKETS = (
    64  # lists and objects in JSON; a thousand in each other would be read, but not looked at again
)

OBJECT = re.compile(rb"(\xef\xbb\xbf)?[ \t\r\n]*\{")  # how one begins, maybe behind a mark of UTF-8

# Files in JSON: long texts of base64, with an address' head and escapes that some languages write into it.
# Between two texts of JSON stand a comma or a colon at least, so that nothing valid is ever taken for one.
LONG_TEXT = re.compile(rb'"(?=[^"]{256})(?:data:[^",]{1,100},)?(?:[A-Za-z0-9+/=_-]++|\\[/nru])++"')


@dataclass(frozen=True)
class Shape(Generic[F]):
    """What a route reads.

    Attributes:
        fields: Model of the text fields.
        picture: Name of the file field that holds the photo, or the photos.
        max_bytes: Bytes of one file.
        max_pictures: How many photos there may be; None for one photo, which is no list.
        files: Further file fields, one file each.
    """

    fields: type[F]
    picture: str
    max_bytes: int
    max_pictures: int | None = None
    files: tuple[str, ...] = ()

    @property
    def file_names(self) -> tuple[str, ...]:
        """All file fields."""
        return (self.picture, *self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """All fields."""
        return (*self.file_names, *self.fields.model_fields)

    def check_count(self, pictures: int) -> None:
        """Refuse more photos than there may be.

        Raises:
            InvalidFieldsError: There are.
        """
        if self.max_pictures is not None and pictures > self.max_pictures:
            message = f"'{self.picture}' holds {pictures} pictures; the limit is {self.max_pictures}."
            raise InvalidFieldsError.one(self.picture, message, "Send them in several requests.")


Values = dict[str, Any]
Files = dict[str, list[bytes]]


async def read(request: Request, shape: Shape[F]) -> tuple[F, Files]:
    """Read and check the whole request.

    Args:
        request: Its body is read to the end.
        shape: What may be in it.

    Returns:
        The checked fields, and the content of each file field; that of the photo is never empty.

    Raises:
        BadRequestError: The body is of no accepted kind, or broken.
        InvalidFieldsError: Fields are missing, unknown, repeated or wrong.
        TooLargeError: A file is larger than allowed.
    """
    kind = kind_of(request)
    query = _read_query(request, shape)
    if kind == FORM:
        values, files = await _read_form(request, shape)
    elif kind == JSON:
        body = await request.body()
        values, files = await run_in_threadpool(lambda: _read_json(body, shape))  # may be many MiB of text
    elif kind.startswith("image/"):
        values, files = {}, {shape.picture: [content] if (content := await request.body()) else []}
    else:
        raise unknown_kind(kind)
    # What the query repeats word for word is no contradiction.
    _refuse(
        [(name, *_repeated(name)) for name in query if name in values and query[name] != _text(values[name])]
    )
    fields = check(shape.fields, query | values)
    _check_files(files, shape)
    return fields, files


def check(model: type[F], values: Mapping[str, Any]) -> F:
    """Validate fields.

    Raises:
        InvalidFieldsError: Naming every wrong one, with what it takes.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        described = model.model_fields
        raise InvalidFieldsError(
            [
                {
                    "field": (name := str(entry["loc"][0])),
                    "message": f"'{name}' is wrong: {_words(entry)}.",
                    "hint": described[name].description or "",
                }
                for entry in error.errors(include_url=False, include_input=False)
            ]
        ) from None


def _words(entry: ErrorDetails) -> str:
    if entry["type"] == "string_pattern_mismatch":
        return DECIMAL  # the only pattern there is
    if entry["type"] == "string_type":
        return "must be text"
    return entry["msg"].removeprefix("Value error, ")


def kind_of(request: Request) -> str:
    """The media type of a body.

    Raises:
        BadRequestError: It is compressed.
    """
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise BadRequestError(
            f"The body's Content-Encoding is '{encoding[:60]}'; only identity is accepted.",
            status=415,
            code="content-encoding",
            hint="Send the body as it is: pictures are small already.",
            field="Content-Encoding",
        )
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def unknown_kind(kind: str) -> BadRequestError:
    """The refusal of a body of another kind."""
    told = f"The body is '{kind[:60]}'" if kind else "The body has no Content-Type"
    return BadRequestError(
        f"{told}; accepted are {', '.join(ACCEPTED)}.",
        status=415,
        code="content-type",
        hint=(
            "Send a form (curl -F image=@photo.jpg), the picture itself (curl -H 'Content-Type: image/jpeg' "
            "--data-binary @photo.jpg), or JSON with the picture in base64."
        ),
        field="Content-Type",
    )


def _read_query(request: Request, shape: Shape[Any]) -> Values:
    pairs = request.query_params.multi_items()
    _check_names([name for name, _ in pairs], shape.fields.model_fields, shape)
    return dict(pairs)


class _InMemory(MultiPartParser):
    """Keeps files off the disk: they are read back at once, and what all bodies hold is bounded and counted."""

    spool_max_size = 0  # never
    _ended = False

    def on_end(self) -> None:
        """The last boundary is there."""
        self._ended = True

    async def parse(self) -> FormData:
        """Read all fields; of a form that was cut off the last one would be missing without a word."""
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("The form ends before its last boundary.")
        return form


def _check_form(request: Request) -> None:
    """Refuse what cannot be told apart, and texts in another encoding.

    A client would choose among all encodings that Python knows, the slow ones too.

    Raises:
        BadRequestError: The form names no boundary, or another encoding.
    """
    _, parameters = parse_options_header(request.headers["content-type"])
    if b"boundary" not in parameters:
        raise BadRequestError(
            "The form's Content-Type names no boundary.",
            status=400,
            code="boundary",
            hint="Leave the header to the program that writes the form: it knows the boundary.",
            field="Content-Type",
        )
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() != "utf-8":
        raise BadRequestError(
            f"The form's charset is '{charset[:60]}'; only utf-8 is accepted.",
            status=415,
            code="charset",
            hint="Send texts in UTF-8, and leave the charset out of Content-Type.",
            field="Content-Type",
        )


async def _read_form(request: Request, shape: Shape[Any]) -> tuple[Values, Files]:
    _check_form(request)
    max_files = max(MAX_FIELDS, (shape.max_pictures or 1) + len(shape.files))
    try:
        form = await _InMemory(
            request.headers,
            request.stream(),
            max_files=max_files,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_TEXT_BYTES,
        ).parse()
    except MultiPartException as error:
        raise BadRequestError(
            error.message,
            status=400,
            code="form",
            hint=f"A form holds at most {max_files} files and {MAX_FIELDS} texts of {MAX_TEXT_BYTES // 1024} KiB "
            "each, all of it up to its last boundary.",
            field="body",
        ) from None
    try:
        return await _sort(form.multi_items(), shape)
    finally:
        await form.close()


async def _sort(items: Iterable[tuple[str, UploadFile | str]], shape: Shape[Any]) -> tuple[Values, Files]:
    """Texts and files of a form."""
    # For what was left empty browsers send an empty text, and an empty file without a name.
    items = [(name, value) for name, value in items if value != "" or name not in shape.names]
    errors = []
    for name, value in items:
        if not isinstance(value, UploadFile) and name in shape.file_names:
            errors.append((name, f"'{name}' is text; it must be a file.", f"With curl: -F {name}=@FILE."))
        elif isinstance(value, UploadFile) and name in shape.fields.model_fields:
            errors.append((name, f"'{name}' is a file; it must be text.", "Send it without a file name."))
    _check_names([name for name, _ in items], shape.names, shape, errors)
    texts = {name: value for name, value in items if isinstance(value, str)}
    files: Files = {}
    for name, value in items:
        if isinstance(value, UploadFile) and (value.filename or value.size):
            _check_size(name, value.size or 0, shape.max_bytes)
            files.setdefault(name, []).append(await value.read())
    return texts, files


def _read_json(body: bytes, shape: Shape[Any]) -> tuple[Values, Files]:
    """The fields of a JSON object; those that are null count as left out."""
    pairs = parse_object(body)
    _check_names([name for name, _ in pairs], shape.names, shape, repeatable=())
    values = {name: value for name, value in pairs if value is not None}
    files: Files = {}
    for name in shape.file_names:
        if (value := values.pop(name, None)) is None:
            continue
        many = name == shape.picture and shape.max_pictures is not None and isinstance(value, list)
        texts = value if many else [value]
        if many:
            shape.check_count(len(texts))  # before anything is decoded
        files[name] = [_decode(name, text, shape.max_bytes) for text in texts]
    return values, files


def parse_object(body: bytes) -> list[tuple[str, Any]]:
    """Name and value pairs of the outermost object, repeated ones included.

    Long texts are cut out first and put back as the values that are read: what is left is short, or refused
    before there is an object for each of its values.

    Raises:
        BadRequestError: It is not a JSON object, or large beside its long texts, or of many lists.
    """
    texts: deque[bytes] = deque()

    def cut(text: re.Match[bytes]) -> bytes:
        texts.append(text[0])
        return b"NaN"  # which no text of JSON is, and which the reader asks for by name

    def put_back(constant: str) -> Any:
        if constant != "NaN" or not texts:  # one of the client's own
            raise ValueError
        return json.loads(texts.popleft())

    def keep_pairs(pairs: list[tuple[str, Any]]) -> Any:
        return _Pairs(pairs)

    no_object = BadRequestError(
        "The body is not a JSON object.",
        status=400,
        code="json",
        hint='Send an object in UTF-8, such as {"image": "<base64>", "ratio": 0.75}.',
        field="body",
    )
    if not OBJECT.match(body):  # a picture, say, which would be told that it has too many brackets
        raise no_object
    rest = LONG_TEXT.sub(cut, body)
    if len(rest) > MAX_TEXT_BYTES:
        raise BadRequestError(
            f"The JSON is larger than the allowed {MAX_TEXT_BYTES // 1024} KiB, not counting its files.",
            status=413,
            code="too-large",
            hint="Send a few short fields; files are texts of base64 without line breaks or spaces.",
            field="body",
        )
    if rest.count(b"[") + rest.count(b"{") > MAX_BRACKETS:
        raise BadRequestError(
            f"The JSON has more than the allowed {MAX_BRACKETS} lists and objects.",
            status=400,
            code="json",
            hint="Send one object; its lists hold nothing but texts and numbers.",
            field="body",
        )
    try:
        # Decimals stay text: a ratio is read by its digits, not by the nearest binary number.
        parsed = json.loads(rest, parse_float=str, parse_constant=put_back, object_pairs_hook=keep_pairs)
    except (ValueError, RecursionError):
        raise no_object from None
    if texts or not isinstance(parsed, _Pairs):  # one was cut out from between two others
        raise no_object
    return list(parsed)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its names in order; a list of the client's is none."""


def _decode(name: str, text: object, max_bytes: int) -> bytes:
    """A file out of base64; its length is checked before it is decoded."""
    hint = "Send the file's bytes in base64 without line breaks; a data: address is read too."
    if not isinstance(text, str):
        raise InvalidFieldsError.one(name, f"'{name}' must be text in base64.", hint)
    head, comma, _ = text[:200].partition(",")
    if comma and head.startswith("data:"):
        text = text[len(head) + 1 :]
    _check_size(name, len(text) // 4 * 3 - 2, max_bytes)
    try:
        content = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # characters that are not ASCII raise it as well
        raise InvalidFieldsError.one(name, f"'{name}' is not base64.", hint) from None
    return content


def _check_names(
    given: Sequence[str],
    allowed: Iterable[str],
    shape: Shape[Any],
    errors: Sequence[tuple[str, str, str]] = (),
    repeatable: tuple[str, ...] | None = None,
) -> None:
    """Refuse what is unknown or repeated, together with what was found before."""
    allowed = tuple(allowed)
    if repeatable is None:
        repeatable = () if shape.max_pictures is None else (shape.picture,)
    found = list(errors)
    for name in dict.fromkeys(given):
        if name not in allowed:
            where = f"Allowed are {', '.join(allowed)}."
            found.append((name, f"'{name[:60]}' is not a field of this request.", where))
        elif given.count(name) > 1 and name not in repeatable:
            found.append((name, *_repeated(name)))
    _refuse(found)


def _check_files(files: Files, shape: Shape[Any]) -> None:
    for name, contents in files.items():
        for content in contents:
            _check_size(name, len(content), shape.max_bytes)
    pictures = files.get(shape.picture)
    if not pictures:
        hint = f"Send the photo as a file, for example curl -F {shape.picture}=@photo.jpg."
        raise InvalidFieldsError.one(shape.picture, f"'{shape.picture}' is missing.", hint)
    shape.check_count(len(pictures))


def _check_size(name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLargeError(name, max_bytes)


def _text(value: object) -> str:
    """A value as a query would have it."""
    return value if isinstance(value, str) else json.dumps(value)


def _repeated(name: str) -> tuple[str, str]:
    return f"'{name}' was sent more than once.", "Send it once."


def _refuse(errors: Sequence[tuple[str, str, str]]) -> None:
    if errors:
        raise InvalidFieldsError([_named(*error) for error in {error[0]: error for error in errors}.values()])


def _named(name: str, message: str, hint: str) -> dict[str, str]:
    return {"field": name[:60], "message": message, "hint": hint}

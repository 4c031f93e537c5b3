"""Bytes to text, as browsers read them: byte order mark, declared encoding, UTF-8, then a guess. It never fails.

Labels of encodings mean what the WHATWG Encoding Standard says: `iso-8859-1` is windows-1252, `gb2312` is GB 18030.
Only the encodings listed here are used. Python also has codecs that take quadratic time (`punycode`, `idna`) or
are no encodings of text (`zip`, `unicode_escape`), and foreign bytes must not choose those.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from functools import lru_cache

# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# Python's codec, and the labels that mean it, without their punctuation. WHATWG's labels, and those of old mail
# programs (UTF-7, the code pages of DOS, HZ, ISO-2022-KR), which the standard leaves out because of scripts in pages.
_LABELS = """
utf-8          utf8 unicode11utf8 unicode20utf8 xunicode20utf8 utf8mb4 utf8bom utf8sig
utf-16-le      utf16le utf16 ucs2 unicode unicodefeff iso10646ucs2 csunicode
utf-16-be      utf16be unicodefffe
utf-32-le      utf32le utf32 ucs4
utf-32-be      utf32be
utf-7          utf7 unicode11utf7
cp1252         cp1252 windows1252 win1252 xcp1252 ansi iso88591 88591 latin1 l1 cp819 ibm819 isoir100 csisolatin1
cp1250         cp1250 windows1250 win1250 xcp1250
cp1251         cp1251 windows1251 win1251 xcp1251
cp1253         cp1253 windows1253 win1253 xcp1253
cp1254         cp1254 windows1254 win1254 xcp1254 iso88599 88599 latin5 l5 isoir148 csisolatin5
cp1255         cp1255 windows1255 win1255 xcp1255
cp1256         cp1256 windows1256 win1256 xcp1256
cp1257         cp1257 windows1257 win1257 xcp1257
cp1258         cp1258 windows1258 win1258 xcp1258
cp874          windows874 cp874 dos874 tis620 iso885911 885911
iso8859-2      iso88592 88592 latin2 l2 isoir101 csisolatin2
iso8859-3      iso88593 88593 latin3 l3 isoir109 csisolatin3
iso8859-4      iso88594 88594 latin4 l4 isoir110 csisolatin4
iso8859-5      iso88595 88595 cyrillic isoir144 csisolatincyrillic
iso8859-6      iso88596 88596 iso88596e iso88596i arabic asmo708 ecma114 isoir127 csisolatinarabic csiso88596e csiso88596i
iso8859-7      iso88597 88597 greek greek8 ecma118 elot928 suneugreek isoir126 csisolatingreek
iso8859-8      iso88598 88598 iso88598e iso88598i hebrew logical visual isoir138 csisolatinhebrew csiso88598e csiso88598i
iso8859-10     iso885910 885910 latin6 l6 isoir157 csisolatin6
iso8859-13     iso885913 885913 latin7
iso8859-14     iso885914 885914 latin8
iso8859-15     iso885915 885915 latin9 l9 csisolatin9
iso8859-16     iso885916 885916 latin10
koi8-r         koi koi8 koi8r cskoi8r
koi8-u         koi8u koi8ru
mac-roman      macintosh mac macroman xmacroman csmacintosh
mac-cyrillic   xmaccyrillic xmacukrainian maccyrillic
cp866          cp866 ibm866 866 csibm866
cp437          cp437 ibm437 437
cp850          cp850 ibm850 850
cp852          cp852 ibm852 852
cp858          cp858 ibm858 858
gb18030        gb18030 gbk xgbk gb2312 gb231280 chinese csgb2312 csiso58gb231280 isoir58 cp936 936 ms936 windows936 euccn
hz             hzgb2312 hz
big5hkscs      big5 big5hkscs cnbig5 csbig5 xxbig5 cp950 950 windows950
cp932          shiftjis sjis xsjis mskanji ms932 cp932 windows31j csshiftjis
euc-jp         eucjp xeucjp cseucpkdfmtjapanese ujis
iso2022-jp-ext iso2022jp csiso2022jp iso2022jp1 iso2022jp2 iso2022jp3 iso2022jpms cp50220 cp50221 cp50222 jis
cp949          euckr ksc56011987 ksc56011989 ksc5601 cp949 949 windows949 uhc korean csksc56011987 cseuckr isoir149
iso2022-kr     iso2022kr csiso2022kr
"""


def _codecs_by_label() -> dict[str, str]:
    codecs_by_label: dict[str, str] = {}
    for line in _LABELS.strip().splitlines():
        codec, *labels = line.split()
        codecs_by_label.update(dict.fromkeys(labels, codec))
    return codecs_by_label


_CODECS = _codecs_by_label()
# What a codec does not know its fuller relative may: the row of NEC's special characters, letters of Hong Kong.
_RELATIVES = {"euc-jp": "euc-jis-2004", "iso2022-jp-ext": "iso2022-jp-2004", "big5hkscs": "cp950"}

# What is guessed, by the name of the detector. Others, such as the code pages of DOS and the Macintosh, are too rare for a guess.
_GUESSED = {
    "cp1252": "cp1252",
    "cp1250": "cp1250",
    "iso8859-2": "iso8859-2",
    "cp1254": "cp1254",
    "cp1251": "cp1251",
    "koi8-r": "koi8-r",
    "cp1253": "cp1253",
    "cp1255": "cp1255",
    "cp1256": "cp1256",
    "cp932": "cp932",
    "euc_jis_2004": "euc-jp",
    "gb18030": "gb18030",
    "big5hkscs": "big5hkscs",
    "cp949": "cp949",
}
_LATIN = frozenset({"cp1250", "iso8859-2", "cp1254"})
_GUESSED_FROM = 65_536  # bytes
_LEAST_CONFIDENCE = 0.12
_LEAST_DIFFERENCE = 3  # characters
_ASCII = bytes(range(128))
_FOREIGN_WORD = re.compile(r"[^\W\d_\x00-\x7f]{3}")

_JIS_ESCAPE = re.compile(rb"\x1b(\$[@B]|\([BJI])")

_HEAD_BYTES = (
    4_096  # WHATWG looks at 1,024; titles and scripts before the declaration are longer today
)
_XML = re.compile(
    rb"\s{0,100}<\?xml\b[^<>]{0,300}?\bencoding\s{0,9}=\s{0,9}[\"']([^\"'<>]{1,60})", re.IGNORECASE
)
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META = re.compile(rb"<meta[\s/][^<>]{0,1000}", re.IGNORECASE)
_META_CHARSET = re.compile(
    rb"[\s/\"';]charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([^\s\"'/>;]{1,60})", re.IGNORECASE
)


def codec_of(label: str) -> str | None:
    """Return the name of Python's codec for a label (`Content-Type`, `<meta>`, XML), or None.

    The labels of ASCII are unknown ones: unlike a browser, a mail program that declares it leaves other bytes open.
    """
    name = label[:60].partition("*")[0].lower()
    name = re.sub(r":19\d\d\Z", "", name.strip(" \t\r\n\"'"))
    return _CODECS.get("".join(character for character in name if character.isalnum()))


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text, and the codec that was guessed for it, where nothing declares one and the bytes are not UTF-8."""

    text: str
    guessed: str = ""


def decode(data: bytes, charset: str | None = None) -> str:
    """Return the text of `data`, whose sender declares `charset`. Bytes that mean nothing become U+FFFD.

    A byte order mark decides, then `charset`, an XML declaration, UTF-8 if the bytes are valid, and a guess.
    """
    return decoded(data, charset).text


def decoded(data: bytes, charset: str | None = None) -> Decoded:
    """Return the text of `data` as `decode` does, and whether its charset is guessed."""
    return _decode(data, codec_of(charset or "") or _codec_in_xml(data))


def decode_html(data: bytes, charset: str | None = None) -> str:
    """Return the text of an HTML page, like `decode`, which may declare its own encoding in a `<meta>` element."""
    codec = codec_of(charset or "") or _codec_in_xml(data) or _codec_in_html(data)
    return _decode(data, codec).text


def decode_header(data: bytes, charset: str | None = None) -> str:
    """Return the text of a header field with raw bytes that are not ASCII: UTF-8 (RFC 6532), else `charset`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _decode(data, codec_of(charset or "")).text


def _codec_in_xml(data: bytes) -> str | None:
    match = _XML.match(data, 0, _HEAD_BYTES)
    return _codec_of_readable(match[1]) if match else None


def _codec_in_html(data: bytes) -> str | None:
    head = _COMMENT.sub(b"", data[:_HEAD_BYTES])
    for element in _META.finditer(head):
        tag = element[0].lower()
        charset = _META_CHARSET.search(tag)
        if charset is None or (b"content" in tag[: charset.start()] and b"http-equiv" not in tag):
            continue
        if codec := _codec_of_readable(charset[1]):
            return codec
    return None


def _codec_of_readable(label: bytes) -> str | None:
    """Return the codec for a label that was read as ASCII: a page in which it can be read is not UTF-16 or UTF-32."""
    codec = codec_of(label.decode("ascii", "replace"))
    return "utf-8" if codec and codec.startswith(("utf-16", "utf-32")) else codec


def _decode(data: bytes, codec: str | None) -> Decoded:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return Decoded(data[len(mark) :].decode(encoding, "replace"))
    wide = _wide_codec(data)
    if wide:
        return Decoded(data.decode(wide, "replace"))
    if codec is None or codec.startswith(("utf-16", "utf-32")):
        text = _strict(data, "utf-8")
        if text is not None:
            return Decoded(text)
    if codec is not None:
        return Decoded(_decode_declared(data, codec))
    text = data.decode("utf-8", "replace")
    if not _is_mostly_broken(text):
        return Decoded(text)
    guess = guessed_codec(data)
    return Decoded(_decode_declared(data, guess), guess)


def _decode_declared(data: bytes, codec: str) -> str:
    for name in (codec, _RELATIVES.get(codec)):
        text = _strict(data, name) if name else None
        if text is not None:
            return text
    if codec == "iso2022-jp-ext":
        return _decode_jis(data)
    return _decode_invalid(data, codec)


def guessed_codec(data: bytes) -> str:
    """Return the codec of bytes that are not UTF-8 and whose charset nobody declares: windows-1252 unless another is sure.

    It looks at 64 KiB from the first letter above ASCII on. Measured on translations of programs in 16 languages of
    Western Europe, windows-1252 is kept for all of 14,400 texts of 8 to 60 characters, and for all but 3 of 4,800 of 300.
    """
    first = len(data) - len(data.lstrip(_ASCII))
    return _guessed_codec(data[max(0, first - 200) : first + _GUESSED_FROM])


@lru_cache(maxsize=16)  # the header of a part is read several times; at most 1 MB
def _guessed_codec(sample: bytes) -> str:
    # Takes 70 ms to import, and few texts come here.
    import chardet

    guess = chardet.detect(sample, include_encodings=_GUESSED, compat_names=False)
    codec = _GUESSED.get(guess["encoding"] or "", "cp1252")
    if codec == "cp1252" or guess["confidence"] < _LEAST_CONFIDENCE:
        return "cp1252"
    text = sample.decode(codec, "replace")
    # These share most letters with windows-1252, where a single one may be a pound sign.
    if codec in _LATIN:
        western = sample.decode("cp1252", "replace")
        differences = sum(a != b for a, b in zip(text, western, strict=True))
        return codec if differences >= _LEAST_DIFFERENCE else "cp1252"
    # Words of other scripts. A Western text has hardly three letters above ASCII in a row.
    return codec if _FOREIGN_WORD.search(text) else "cp1252"


def _wide_codec(data: bytes) -> str | None:
    """Return UTF-16's codec for a text without a mark whose every other byte is mostly NUL, as of Western letters."""
    head = data[:_HEAD_BYTES]
    if head.count(0) * 5 < len(head) * 2 or len(head) < 4:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > 10 * even:
        return "utf-16-le"
    return "utf-16-be" if even > 10 * odd else None


def _strict(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except UnicodeError:
        return None


def _decode_invalid(data: bytes, codec: str) -> str:
    """Decode bytes that are not valid in their encoding: a few broken characters, or a wrong declaration."""
    if codec != "utf-8" and (text := _strict(data, "utf-8")) is not None:
        return text
    text = data.decode(codec, "replace")
    return data.decode("cp1252", "replace") if _is_mostly_broken(text) else text


def _is_mostly_broken(text: str) -> bool:
    """Return whether most of the characters above ASCII stand for bytes that mean nothing in the encoding."""
    broken = text.count("\ufffd")
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    return broken > foreign - broken


def _decode_jis(data: bytes) -> str:
    """Decode ISO-2022-JP with the characters of vendors (`①`, `㈱`), which Python's codecs lack, by way of Shift_JIS."""
    pieces: list[str] = []
    mode = b"(B"
    for n, piece in enumerate(_JIS_ESCAPE.split(data)):
        if n % 2:
            mode = piece
        elif mode.startswith(b"$"):
            pieces.append(_shift_jis(piece).decode("cp932", "replace"))
        elif mode == b"(I":
            kana = bytes(byte | 0x80 for byte in piece)
            pieces.append(kana.decode("cp932", "replace"))
        else:
            pieces.append(piece.decode("cp932", "replace"))
    return "".join(pieces)


def _shift_jis(jis: bytes) -> bytes:
    """Return pairs of bytes of JIS X 0208 as Shift_JIS. Line ends may stand between them."""
    result = bytearray()
    pair_start = -1
    for byte in jis:
        if not 0x21 <= byte <= 0x7E:
            pair_start = -1
            result.append(byte & 0x7F)
        elif pair_start < 0:
            pair_start = byte
        else:
            lead = (pair_start + 1) // 2 + (0x70 if pair_start < 0x5F else 0xB0)
            trail = byte + 0x7E
            if pair_start % 2:
                trail = byte + 0x1F + (byte >= 0x60)
            result += bytes((lead, trail))
            pair_start = -1
    return bytes(result)

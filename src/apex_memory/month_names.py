"""Names of months in other languages than English, and the words of those languages after which a day stands.

The names are those of Unicode CLDR (Unicode-3.0 licence), as Babel 2.18.0 carries it: the Gregorian calendar's wide and abbreviated
ones, in the forms for a date and for standing alone; German with Austria's. They are also known without their accents.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

# Words before a day, wide names, abbreviations, of each language. A month is a column; `/` separates its names.
_LANGUAGES = (
    (
        "am vom bis zum seit ab dem den",  # German
        "januar/jänner februar märz april mai juni juli august september oktober november dezember",
        "jan/jän feb mär apr - jun jul aug sept/sep okt nov dez",
    ),
    (
        "le du au depuis dès",  # French
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "janv févr - avr - - juil - sept oct nov déc",
    ),
    (
        "el del al desde hasta día",  # Spanish
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "ene feb mar abr may jun jul ago sept oct nov dic",
    ),
    (
        "il dal al del entro",  # Italian
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "gen feb mar apr mag giu lug ago set ott nov dic",
    ),
    (
        "em dia até desde",  # Portuguese
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "jan fev mar abr mai jun jul ago set out nov dez",
    ),
    (
        "op van tot sinds vanaf",  # Dutch
        "januari februari maart april mei juni juli augustus september oktober november december",
        "jan feb mrt apr - jun jul aug sep okt nov dec",
    ),
    (
        "dnia dniu od do",  # Polish
        "stycznia/styczeń lutego/luty marca/marzec kwietnia/kwiecień maja/maj czerwca/czerwiec lipca/lipiec sierpnia/sierpień "
        "września/wrzesień października/październik listopada/listopad grudnia/grudzień",
        "sty lut mar kwi - cze lip sie wrz paź lis gru",
    ),
    (
        "с со до от к по на",  # Russian
        "января/январь февраля/февраль марта/март апреля/апрель мая/май июня/июнь июля/июль августа/август сентября/сентябрь "
        "октября/октябрь ноября/ноябрь декабря/декабрь",
        "янв февр/фев мар апр - июн июл авг сент/сен окт нояб/ноя дек",
    ),
    (
        "з із до від на по",  # Ukrainian
        "січня/січень лютого/лютий березня/березень квітня/квітень травня/травень червня/червень липня/липень серпня/серпень "
        "вересня/вересень жовтня/жовтень листопада/листопад грудня/грудень",
        "січ лют бер квіт трав черв лип серп вер жовт лист груд",
    ),
    (
        "dne od do ke",  # Czech; its abbreviations are other words
        "ledna/leden února/únor března/březen dubna/duben května/květen června/červen července/červenec srpna/srpen září "
        "října/říjen listopadu/listopad prosince/prosinec",
        "- - - - - - - - - - - -",
    ),
    (
        "dňa od do",  # Slovak
        "januára/január februára/február marca/marec apríla/apríl mája/máj júna/jún júla/júl augusta/august "
        "septembra/september októbra/október novembra/november decembra/december",
        "jan feb mar apr - - - aug sep okt nov dec",
    ),
    (
        "din de pe la până",  # Romanian
        "ianuarie februarie martie aprilie mai iunie iulie august septembrie octombrie noiembrie decembrie",
        "ian feb mar apr - iun iul aug sept oct nov dec",
    ),
    (
        "tarihi tarihinde",  # Turkish
        "ocak şubat mart nisan mayıs haziran temmuz ağustos eylül ekim kasım aralık",
        "oca şub mar nis may haz tem ağu eyl eki kas ara",
    ),
    (
        "den från till senast",  # Swedish
        "januari februari mars april maj juni juli augusti september oktober november december",
        "jan feb mar apr - jun jul aug sep okt nov dec",
    ),
    (
        "den fra til senest",  # Danish and Norwegian
        "januar februar marts/mars april maj/mai juni juli august september oktober november december/desember",
        "jan feb mar apr - jun jul aug sep okt nov dec/des",
    ),
    (
        "",  # Finnish, whose abbreviations nobody writes after a day
        "tammikuuta/tammikuu helmikuuta/helmikuu maaliskuuta/maaliskuu huhtikuuta/huhtikuu toukokuuta/toukokuu kesäkuuta/kesäkuu "
        "heinäkuuta/heinäkuu elokuuta/elokuu syyskuuta/syyskuu lokakuuta/lokakuu marraskuuta/marraskuu joulukuuta/joulukuu",
        "- - - - - - - - - - - -",
    ),
    (
        "",  # Hungarian
        "január február március április május június július augusztus szeptember október november december",
        "jan febr márc ápr máj jún júl aug szept okt nov dec",
    ),
    (
        "nuo iki",  # Lithuanian
        "sausio/sausis vasario/vasaris kovo/kovas balandžio/balandis gegužės/gegužė birželio/birželis liepos/liepa "
        "rugpjūčio/rugpjūtis rugsėjo/rugsėjis spalio/spalis lapkričio/lapkritis gruodžio/gruodis",
        "- - - - - - - - - - - -",
    ),
)
_OTHER_WORDS = frozenset(
    [
        "mars",
        "mayo",
        "april",
        "august",
        "maja",
        "maj",
        "marca",
        "julio",
        "mart",
        "nisan",
        "kasım",
        "kasim",
        "eylül",
        "eylul",
        "augusta",
        "leden",
        "duben",
        "жовтень",
        "лютий",
        "май",
        "март",
        "август",
        "kovas",
        "liepa",
        "balandis",
    ]
)
"""Wide names that are another word, or the name of a person or a place."""


@dataclass(frozen=True, slots=True)
class MonthName:
    """What a name stands for. `is_wide` says that it is no abbreviation, `is_sure` that it hardly means anything else."""

    month: int
    is_wide: bool = False
    is_sure: bool = False
    words_before: frozenset[str] = frozenset()
    """Words of the name's languages after which a day stands."""


def _without_accents(text: str) -> str:
    parts = unicodedata.normalize("NFD", text.replace("ı", "i"))
    return "".join(part for part in parts if not unicodedata.combining(part))


def _month_names() -> dict[str, MonthName]:
    names: dict[str, MonthName] = {}
    for before, wide, short in _LANGUAGES:
        words_before = frozenset(before.split())
        for is_wide, columns in ((True, wide), (False, short)):
            for month, column in enumerate(columns.split(), start=1):
                for name in () if column == "-" else column.split("/"):
                    for form in {name, _without_accents(name)}:
                        is_sure = is_wide and form not in _OTHER_WORDS
                        known = names.get(form, MonthName(month))
                        names[form] = MonthName(
                            known.month,
                            known.is_wide or is_wide,
                            known.is_sure or is_sure,
                            known.words_before | words_before,
                        )
    return names


_NAMES: Mapping[str, MonthName] = _month_names()


def month_named(name: str) -> MonthName | None:
    """Return what a name stands for, in any case; None for a word that is no month's name."""
    # The capital of the Turkish i becomes two characters.
    return _NAMES.get(name.lower().replace("i\u0307", "i"))


def _alternatives(names: list[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


WIDE_MONTH = _alternatives([name for name, month in _NAMES.items() if month.is_wide])
"""A pattern, without a group, for the names that are no abbreviations."""
SURE_MONTH = _alternatives([name for name, month in _NAMES.items() if month.is_sure])
"""A pattern, without a group, for the names that hardly mean anything else."""

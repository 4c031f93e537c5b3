"""Texts that no sender declares a charset for, of many languages and lengths: read right, or as windows-1252."""

from __future__ import annotations

import random
import time

import pytest

from apex_memory.model import File
from apex_memory.pipeline.charset import decode, decode_header, decode_html, decoded
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.parse import parse, read_plain_text
from tests import documents

RUSSIAN = (
    "Добрый день! Просим подтвердить время погрузки до пятницы. Склад открывается в девять часов утра, всего двенадцать "
    "паллет, общий вес восемь тонн. Водитель должен иметь при себе паспорт и доверенность на получение груза. "
)
POLISH = (
    "Proszę potwierdzić godzinę załadunku do piątku. Magazyn otwiera się o dziewiątej rano, łącznie dwanaście palet, "
    "ciężar całkowity osiem ton. Kierowca powinien mieć przy sobie dowód osobisty i upoważnienie do odbioru ładunku. "
)
CZECH = (
    "Řidič čeká před skladem, prosíme o potvrzení času nakládky do pátku. Sklad se otevírá v devět hodin ráno, celkem dvanáct palet, celková "
    "hmotnost osm tun. Řidič musí mít u sebe občanský průkaz a plnou moc k převzetí zboží, děkujeme. "
)
TEXTS = {
    "cp932": "出荷指示書の件ですが、倉庫の受付は午前九時から始まります。トラックの到着予定を教えてください。荷物は全部で十二パレット、重量は八千キロです。",
    "euc-jp": "倉庫の受付は午前九時から始まります。トラックの到着予定を教えてください。荷物は全部で十二パレット、重量は八千キロです。",
    "gb18030": "您好，关于这批货物的运输安排，请在星期五之前确认装货时间。仓库早上九点开门，共有十二个托盘，总重量八千公斤。谢谢您的配合。",
    "big5": "您好，關於這批貨物的運輸安排，請在星期五之前確認裝貨時間。倉庫早上九點開門，共有十二個棧板，總重量八千公斤。謝謝您的配合。",
    "cp949": "안녕하세요, 화물 운송 일정에 대해 문의드립니다. 창고는 오전 아홉 시에 문을 열며, 팔레트는 모두 열두 개이고 총 중량은 팔천 킬로그램입니다. ",
    "cp1251": RUSSIAN,
    "koi8-r": RUSSIAN,
    "iso8859-2": POLISH,
    "cp1250": CZECH,
    "cp1253": "Παρακαλούμε επιβεβαιώστε την ώρα φόρτωσης έως την Παρασκευή. Η αποθήκη ανοίγει στις εννέα το πρωί, συνολικά δώδεκα παλέτες. ",
    "cp1255": "שלום, נא לאשר את שעת הטעינה עד יום שישי. המחסן נפתח בתשע בבוקר, בסך הכל שנים עשר משטחים, משקל כולל שמונה טון. ",
    "cp1256": "مرحبا، يرجى تأكيد وقت التحميل قبل يوم الجمعة. يفتح المستودع في التاسعة صباحا، المجموع اثنا عشر منصة والوزن ثمانية أطنان. ",
    "cp1254": "Şoför kapıda bekliyor, lütfen yükleme saatini cumaya kadar onaylayın. Depo sabah dokuzda açılıyor, toplam on iki palet, ağırlık sekiz ton. Teşekkürler. ",
}
# Languages that share most letters with Western ones are sure only from here on.
SURE_FROM = {"iso8859-2": 60, "cp1250": 60, "cp1254": 300}


@pytest.mark.parametrize("length", [20, 60, 300])
@pytest.mark.parametrize("codec", TEXTS)
def test_a_text_without_a_declared_charset_is_read(codec: str, length: int) -> None:
    text = (TEXTS[codec] * 8)[:length]
    data = text.encode(codec)
    if length >= SURE_FROM.get(codec, 0):
        assert decode(data) == text
        assert decoded(data).guessed not in ("", "cp1252")
    else:
        assert decode(data) in (text, data.decode("cp1252", "replace"))


WESTERN = {
    "German": "Sehr geehrter Herr Müller, bitte bestätigen Sie die Ladezeit bis Freitag. Das Lager öffnet um neun, zwölf Paletten, Maße überprüft. Grüße ",
    "French": "Bonjour, merci de confirmer l’heure à laquelle vous chargez. L’entrepôt ouvre à neuf heures, douze palettes, déjà prêtes à être chargées. ",
    "Spanish": "Buenos días, ¿puede confirmar la hora de carga? El almacén abre mañana a las nueve; son doce tarimas, según Begoña Núñez. ",
    "Portuguese": "Olá, por favor confirme o horário até sexta-feira. O armazém abre às nove da manhã, são doze paletes, informação não disponível. ",
    "Italian": "Buongiorno, può confermare l’orario? Il magazzino è aperto già alle nove, la città è più vicina, perché non c’è traffico. ",
    "Dutch": "Goedendag, graag één tijd bevestigen vóór vrijdag. De loods is om negen uur geopend, twaalf pallets, coördinatie door Zoë. ",
    "Swedish": "Hej, vänligen bekräfta lasttiden före fredag. Lagret öppnar klockan nio på morgonen, totalt tolv pallar. Hälsningar, Åke. ",
    "Danish": "Goddag, bekræft venligst læssetiden før fredag. Lageret åbner klokken ni, i alt tolv paller, færdig på Ærø. ",
    "Finnish": "Hyvää päivää, vahvistakaa lastausaika ennen perjantaita. Varasto avataan yhdeksältä, yhteensä kaksitoista lavaa. Terveisiä, Päivi. ",
    "English": "The driver’s rate is £450 – “as agreed” – for the café in Zürich, €90 more at 20°C. Call Müller about the résumé. ",
    "Icelandic": "Góðan dag, vinsamlegast staðfestið hleðslutíma fyrir föstudag. Vöruhúsið opnar klukkan níu, tólf bretti. Þakka þér fyrir. ",
}


@pytest.mark.parametrize("length", [20, 60, 300])
@pytest.mark.parametrize("language", WESTERN)
def test_a_western_text_stays_windows_1252(language: str, length: int) -> None:
    whole = WESTERN[language] * 8
    for start in range(0, len(WESTERN[language]), 7):
        text = whole[start : start + length]
        assert decode(text.encode("cp1252")) == text


@pytest.mark.parametrize(
    "text",
    [
        "Müller", "MÜLLER GMBH", "Müller & Söhne", "Günther Müßig", "café", "un café à 3 €", "Mise à l", "non è st", "Temps à ",
        "lokala ä", "£12", "£1,200.50 due", "Load 778: £450 per pallet", "€ 45", "Price: £5 – “ok”", "naïve", "Straße 5", "señor Peña",
        "São Paulo", "Zürich", "Ærø", "Åse", "ÄÖ", "it’s", "20°C", "50 µg", "½ load", "© 2026", "œuvre", "à", "é", "Été à Genève, déjà vu",
        "È richiesto specificare un file da creare replica logica app", "créée", "rien à faire. : doub", "«»", "—", "\xa0",
    ],
)  # fmt: skip
def test_names_and_signs_of_western_texts_stay_what_they_are(text: str) -> None:
    assert decode(text.encode("cp1252")) == text
    assert decode_header(text.encode("cp1252")) == text


def test_a_declaration_and_utf_8_come_before_a_guess() -> None:
    data = RUSSIAN.encode("cp1251")
    assert decode(data, "iso-8859-1") == data.decode("cp1252", "replace")
    assert decode(data, "us-ascii") == RUSSIAN, "ASCII says nothing about other bytes"
    assert decoded(RUSSIAN.encode()).guessed == ""
    assert decoded(RUSSIAN.encode() + b"\xff").text.startswith("Добрый")
    assert decoded(data, "windows-1251").guessed == ""


def test_pages_mails_and_headers_are_guessed_too() -> None:
    page = f"<html><body class='main'><p>{RUSSIAN}</p><a href='https://northwind.example'>more</a></body></html>"
    assert decode_html(page.encode("koi8-r")) == page
    assert (
        decode_header("Отгрузка со склада завтра".encode("cp1251")) == "Отгрузка со склада завтра"
    )
    mail = b"From: a@b.example\nSubject: Load\n\n" + TEXTS["cp932"].encode("cp932")
    parsed = parse(File("a.eml", "", mail), EventBudget(ReaderLimits()))
    assert TEXTS["cp932"] in parsed.text


def test_a_guess_looks_where_the_letters_are() -> None:
    text = "Load,City\n" * 20_000 + RUSSIAN
    assert decode(text.encode("cp1251")) == text


def test_a_guess_takes_milliseconds() -> None:
    for data in (
        random.Random(3).randbytes(5_000_000),
        RUSSIAN.encode("koi8-r") * 20_000,
        b"\x81\xfe" * 2_000_000,
    ):
        started = time.process_time()
        decode(data)
        assert time.process_time() - started < 5


def test_a_guess_is_noted_and_made_in_the_reader_process() -> None:
    file = File("a.csv", "text/csv", RUSSIAN.encode("cp1251"))
    assert read_plain_text(file) is None
    assert parse(file, EventBudget(ReaderLimits())).metadata == {"guessed_charset": "cp1251"}
    known = File("a.csv", "text/csv; charset=windows-1251", file.data)
    assert parse(known, EventBudget(ReaderLimits())).metadata == {}
    noted = documents.mail("x", subject="s", attachments=[("a.csv", "text/csv", file.data)])
    note = parse(File("a.eml", "", noted), EventBudget(ReaderLimits())).metadata["attachments"][0]
    assert note["guessed_charset"] == "cp1251"

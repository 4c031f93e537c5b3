"""What the rules find, and what they must leave alone."""

from __future__ import annotations

import time
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.model import Assertion
from apex_memory.pipeline.entities import canonical
from apex_memory.pipeline.extract import (
    MAX_CANDIDATES,
    MAX_MENTIONS,
    QueryReader,
    extract_query,
)
from apex_memory.pipeline.identifiers import container_digit, vin_digit
from tests.extraction import extract


def mentioned(text: str) -> set[str]:
    return {a.object or "" for a in extract(text, ()) if a.predicate == "mentions"}


def valued(text: str, predicate: str) -> list[str]:
    return [a.value or "" for a in extract(text, ()) if a.predicate == predicate and not a.subject]


@pytest.mark.parametrize(
    ("text", "refs"),
    [
        ("ETA for SHP-100045?", {"shipment:SHP-100045"}),
        ("eta for shp 100045 and SHP100045", {"shipment:SHP-100045"}),
        ("Load SHP-100045 is late", {"shipment:SHP-100045"}),
        ("Shipment # 778812 left", {"shipment:778812"}),
        ("Load # 12345, load 12346, LOAD-12347", {"load:12345", "load:12346", "load:12347"}),
        ("covered LD-55012", {"load:LD-55012"}),
        ("PRO 123456789 / Pro No. 123-4567890", {"pro:123456789", "pro:1234567890"}),
        ("BOL 8812345; B/L# 771-22A; Bill of Lading No.: 990011", {"bol:8812345", "bol:771-22A", "bol:990011"}),
        ("PO 4500123456 and P.O. # 88123 and PO-4500999", {"po:4500123456", "po:88123", "po:4500999"}),
        ("INV-2026-0042, Invoice # 88121", {"invoice:INV-2026-0042", "invoice:88121"}),
        ("MC# 123456, MC-654321, USDOT 1234567, DOT # 7654321", {"mc:123456", "mc:654321", "usdot:1234567", "usdot:7654321"}),
        ("SCAC: NWTK, tendered to ODFL", {"scac:NWTK", "scac:ODFL"}),
        ("CSQU3054383 and MSKU 123456-5", {"container:CSQU3054383", "container:MSKU1234565"}),
        ("VIN 1M8GDM9AXKP042788", {"vin:1M8GDM9AXKP042788"}),
        ("Unit 204 and truck #12, Trailer TR-5301", {"vehicle:204", "vehicle:12", "vehicle:TR-5301"}),
        ("write Dana.Ortiz+ops@Northwind.example.", {"email:dana.ortiz+ops@northwind.example"}),
        ("call (614) 555-0123 or +1 312.555.0188", {"phone:+16145550123", "phone:+13125550188"}),
        ("ring +49 30 901820 55", {"phone:+493090182055"}),
        ("ring +49 30 123456 or +49 (0)30 901820", {"phone:+4930123456", "phone:+4930901820"}),
        ("tel:+19015550143, 901/555-0144", {"phone:+19015550143", "phone:+19015550144"}),
        ("Phone: 9015550143, fax no. 19015550144; ticket 9015550145", {"phone:+19015550143", "phone:+19015550144"}),
        ("from Columbus, OH 43215 to St. Louis, MO", {"location:columbus-oh", "location:st-louis-mo"}),
        ("Portland, Oregon and Toronto, ON M5V 2T6", {"location:portland-or", "location:toronto-on"}),
        ("Northwind Trucking LLC hired Blue Ridge Paper Co.", {"company:northwind-trucking", "company:blue-ridge-paper"}),
        ("Thanks to Old Dominion Freight Line, Inc. again", {"company:old-dominion-freight-line"}),
        ("Carrier: Northwind Trucking, LLC", {"company:northwind-trucking"}),
        ("Consignee:\n  Harbor Foods, Dallas, TX", {"company:harbor-foods", "location:dallas-tx"}),
        ("| Shipper | Acme Widgets |", {"company:acme-widgets"}),
        ("Driver: John Smith", {"person:john-smith"}),
        ("Driver: Иван Петров\nContact: Jose\u0301 Garci\u0301a", {"person:иван-петров", "person:josé-garcía"}),
        ("Carrier: Société Générale\nConsignee: 山田運輸株式会社", {"company:société-générale", "company:山田運輸株式会社"}),
        ("Carrier: ООО Ромашка\nCustomer: ขนส่งไทย", {"company:ооо-ромашка", "company:ขนส่งไทย"}),
        ("Carrier: société inconnue\nDriver: josé garcía", set()),
        ("Deliver SHP-\n100045 and LD-\n  55012 -\n3 pallets, a non-\nstop truck", {"shipment:SHP-100045", "load:LD-55012"}),
        ("Montréal, QC H2X 1Y4, LA CAÑADA FLINTRIDGE, CA 91011", {"location:montréal-qc", "location:la-cañada-flintridge-ca"}),
        ("PO#: 7781-22\nLoad ID: 778123\nTrailer: 5531\nDriver: Dana Ortiz", {"po:7781-22", "load:778123", "vehicle:5531", "person:dana-ortiz"}),
        ('{"pro": "223456781", "bol_number": "88-1122", "po": 77812}', {"pro:223456781", "bol:88-1122", "po:77812"}),
        ('<Load><PRO>223456781</PRO><BOL id="88-1122"/></Load>', {"pro:223456781", "bol:88-1122"}),
        ("pro=223456781\npo = 77812\nhttps://x.example/?bol=88-1122&x=1", {"pro:223456781", "po:77812", "bol:88-1122"}),
        ("DELIVER TO ST. LOUIS, MO FROM COLUMBUS, OH 43215", {"location:st-louis-mo", "location:columbus-oh"}),
        ("San José, CA and Coeur d'Alene, ID", {"location:san-josé-ca", "location:coeur-d-alene-id"}),
        ("PRO:          223456789\nBOL #\t\t\t881122\nTrailer:      53221", {"pro:223456789", "bol:881122", "vehicle:53221"}),
        ("PRO Number     223456789\nPO........ 4500123456\nMC       123456", {"pro:223456789", "po:4500123456", "mc:123456"}),
        ("| PRO: | 223456789 |\n| BOL #:  | 88-1122 |\n| Shipper: | Acme Widgets |", {"pro:223456789", "bol:88-1122", "company:acme-widgets"}),
        ("PRO numbers: 223456789, 223456790 and 223456791", {"pro:223456789", "pro:223456790", "pro:223456791"}),
        ("POs 4500123456 & 4500123457; BOL #s 881122/881123", {"po:4500123456", "po:4500123457", "bol:881122", "bol:881123"}),
        ("Three trucks: SHP-202204 leaves, and units 204, 205", {"shipment:SHP-202204", "vehicle:204", "vehicle:205"}),
        ("PO Number(s): 4500123456, 12 pallets", {"po:4500123456"}),
        ("Loads 778123 and 778124, 44000 lbs", {"load:778123", "load:778124"}),
        ("Invoice no: 2026/0042, INV/2026/00042 and inv/2026/03/0042", {"invoice:2026/0042", "invoice:INV/2026/00042", "invoice:INV/2026/03/0042"}),
        ("> Deliver SHP-\n> 100045, or\n>> LD-\n>>  55012", {"shipment:SHP-100045", "load:LD-55012"}),
        ('{"proNumber": "223456781", "BOLNumber":"88-1122", "purchaseOrderNo": 77812}', {"pro:223456781", "bol:88-1122", "po:77812"}),
        ('{"bill_of_lading_number": "88-1122", "billOfLading": "88-1123"}', {"bol:88-1122", "bol:88-1123"}),
        ('{"po": ["77812"], "pro_numbers": ["223456781", "223456782"]}', {"po:77812", "pro:223456781", "pro:223456782"}),
        ("<x:PRO>223456781</x:PRO><PO-Number>77812</PO-Number><BolNumber>88-1122</BolNumber>", {"pro:223456781", "po:77812", "bol:88-1122"}),
        ("Shipper: Acme Widgets     Consignee: HARBOR FOODS\n| Driver: | Jo Smith | Broker: | Blue Ridge |", {"company:acme-widgets", "company:harbor-foods", "person:jo-smith", "company:blue-ridge"}),
        ("Carrier: Northwind Trucking LLC MC 123456\nConsignee: Mill Street Deli #22\nDriver: John Smith 901-555-0143", {"company:northwind-trucking", "company:mill-street-deli", "mc:123456", "person:john-smith", "phone:+19015550143"}),
        ("DRIVER: JOHN SMITH CELL 901-555-0143\nBroker: Blue Ridge SCAC: NWTK", {"person:john-smith", "phone:+19015550143", "company:blue-ridge", "scac:NWTK"}),
        ("Ship to: Columbus, OH\nConsignee: St. Louis, MO 63101\nShip from: Acme Widgets, Dallas, TX", {"location:columbus-oh", "location:st-louis-mo", "company:acme-widgets", "location:dallas-tx"}),
    ],
)  # fmt: skip
def test_found(text: str, refs: set[str]) -> None:
    assert mentioned(text) == refs


@pytest.mark.parametrize(
    ("text", "refs"),
    [
        ("Lane,PRO,Rate\nA-B,223456789,5\nC-D,223456790,6", {"pro:223456789", "pro:223456790"}),
        ("sep=;\nPO Number;Weight\n77812;10\n;11", {"po:77812"}),
        ("BOL\tUnit\tDock\n88-1234567\t5531\t7", {"bol:88-1234567", "vehicle:5531"}),
        ("PRO|Dock\n323456789|7", {"pro:323456789"}),
        ('"Note, long","PRO #"\n"a, ""b"", c" , "223456791"\n"two\nlines",223456792', {"pro:223456791", "pro:223456792"}),
        ("## loads.csv\n\nPRO,Note\n223456793,a\n\nEnd, 223456794", {"pro:223456793"}),
    ],
)  # fmt: skip
def test_cells_of_csv_rows_are_under_their_headers(text: str, refs: set[str]) -> None:
    assert mentioned(text) == refs
    [*_, last] = sorted(extract(text, ((0, len(text)),)), key=lambda item: item.start or 0)
    assert text[last.start :].startswith(str(last.value or last.object).partition(":")[2])


@pytest.mark.parametrize(
    "text",
    [
        "CSQU3054384 MSKU1234567",  # wrong check digits
        "1M8GDM9A1KP042788",
        "11111111111111111",  # a number of 17 digits is no VIN, whatever its check digit
        "ponies12345 LOADTEST1234 download 4",
        "Load: 44000 lbs, load 2026-03-03, load 40 pallets",
        "trailer 53' and truck 3,000",
        "PO Box 12345",
        "the pro 2024 edition, boldly 8812345x",
        "SAIA ABCD WORD",  # a SCAC needs its label or our list
        "Air Freight and Ocean Freight cost more; Thanks, Freight",
        "The Company and Our Logistics",
        "Driver: tbd\nShipper: \nCarrier: ??",
        "PLEASE CONFIRM, OR CALL US. YES, IN TIME",
        "Hello, I am here",
        "a@b @x.com x@y",
        "999-555-1234567 and 2026-03-03",
        "Quote, PRO or BOL\nthe 223456789 th, or none",
        "PRO,Rate\n\n223456789,5",
        "loads 12000 and 5000 lbs",
        "with trucks=1 or loads: 12",
        "Carrier: TBD\nShipper: Same as above\nConsignee: UNKNOWN\nAttn: Accounts Payable",
        '{"loadWeight": "44000", "unitPrice": 450, "poBox": "12345", "invoiceAmount": 1250}',
        "load          44000 lbs",
        "Invoice       1250.00",
        "Invoice 2026/03/01",
        "PO      Qty      Rate\n",
    ],
)
def test_left_alone(text: str) -> None:
    assert mentioned(text) == set()


@pytest.mark.parametrize(
    ("text", "predicate", "values"),
    [
        ("$2,450.00 or USD 300.5", "amount", ["2450.00 USD", "300.50 USD"]),
        ("CAD $1,200 and 1.250,00", "amount", ["1200.00 CAD"]),
        ("$45k for 3 loads, €99, 12.00 EUR", "amount", ["45000.00 USD", "99.00 EUR", "12.00 EUR"]),
        ("12 USDA inspectors, 5 $", "amount", []),
        (
            "€ 1.234,56; 2.450,00 EUR, 40,50 €, USD 1 200.00 and 1\u202f234,56 €",
            "amount",
            ["1200.00 USD", "1234.56 EUR", "2450.00 EUR", "40.50 EUR"],
        ),
        (
            "USD 2.450,00 or CHF 1'234.50, ₹1,20,000.50, A$40",
            "amount",
            ["2450.00 USD", "1234.50 CHF", "120000.50 INR", "40.00 AUD"],
        ),
        ("$1.2 million and $3 thousand", "amount", ["1200000.00 USD", "3000.00 USD"]),
        ("SHP-1,$45.00,10,$12,5 €1,2,3", "amount", ["45.00 USD"]),
        (
            "EUR 1 000 000, 5 000 € et USD 1 200",
            "amount",
            ["1000000.00 EUR", "5000.00 EUR", "1200.00 USD"],
        ),
        (
            "1.000.000 EUR; 1.250,- €; € 99,-; $5 100",
            "amount",
            ["1000000.00 EUR", "1250.00 EUR", "99.00 EUR", "5.00 USD"],
        ),
        (
            "1 250,50 zł, 12 500 руб., 99 Kč, 12,000円",
            "amount",
            ["1250.50 PLN", "12500.00 RUB", "99.00 CZK", "12000.00 JPY"],
        ),
        (
            "200 dollars, 1,250.00 US dollars, a 5 euro fee, 7 europallets",
            "amount",
            ["200.00 USD", "1250.00 USD", "5.00 EUR"],
        ),
        ("$1.5 M or $1.5 K, $2 M-Line", "amount", ["1500000.00 USD", "1500.00 USD", "2.00 USD"]),
        (
            "-$75.50, $-20, −$30; USD -1,200.00 (−5 €)",
            "amount",
            ["-75.50 USD", "-20.00 USD", "-30.00 USD", "-1200.00 USD", "-5.00 EUR"],
        ),
        (
            "-1.234,56 € Gutschrift, –50,00 €, 99,00- EUR",
            "amount",
            ["-1234.56 EUR", "-50.00 EUR", "-99.00 EUR"],
        ),
        (
            "| Discount | ($75.50) |\nCredit: (USD 10)\nFuel   $(5.00)\na,($6.00),b\nPaid $7.00-",
            "amount",
            ["-75.50 USD", "-10.00 USD", "-5.00 USD", "-6.00 USD", "-7.00 USD"],
        ),
        (
            "$10-$12, $13- $14, 10 -15 EUR, the rate ($16.00) is due, - $17, a 5-EUR fee",
            "amount",
            [
                "10.00 USD",
                "12.00 USD",
                "13.00 USD",
                "14.00 USD",
                "15.00 EUR",
                "16.00 USD",
                "17.00 USD",
            ],
        ),
        ("due March 3, 2026 or 4 Apr 2026", "date", ["2026-03-03", "2026-04-04"]),
        ("3/4/26, 13/4/2026, 2026-05-06T10:00", "date", ["2026-03-04", "2026-04-13", "2026-05-06"]),
        ("3.4.2026, 04-05-2026, 2026/05/06", "date", ["2026-04-03", "2026-05-04", "2026-05-06"]),
        ("fällig am 3. März 2026, el 12 de marzo de 2026", "date", ["2026-03-03", "2026-03-12"]),
        (
            "5 févr. 2026, 15 maja 2026, 4 mrt 2026",
            "date",
            ["2026-02-05", "2026-05-15", "2026-03-04"],
        ),
        ("5 out of 6, 3 set, 12 mayo, due 3 März", "date", []),
        ("v1.2.26, 10.0.0.26, 901-555-0143, due March 3", "date", []),
        ("2026-02-30, 99/99/2026, March 45, 2026, 1/2/3/2026", "date", []),
    ],
)
def test_values(text: str, predicate: str, values: list[str]) -> None:
    assert sorted(valued(text, predicate)) == sorted(values)


@pytest.mark.parametrize(
    ("text", "amounts", "dates"),
    [
        ("Rate ~~$1,200.00~~ **$1,350.00**", ["1350.00 USD"], []),
        ("~~$1,200 by 2026-11-03~~ $1,350 by 2026-11-05", ["1350.00 USD"], ["2026-11-05"]),
        ("~~was $5.00~~, then $5.00", ["5.00 USD"], []),
        ("about ~~ $7.00", ["7.00 USD"], []),
        ("~~~\n$8.00\n~~~", ["8.00 USD"], []),  # a block of code
        ("~~$9.00\n$10.00~~", ["9.00 USD", "10.00 USD"], []),
    ],
)
def test_what_is_struck_through_is_no_value(
    text: str, amounts: list[str], dates: list[str]
) -> None:
    assert valued(text, "amount") == amounts and valued(text, "date") == dates


def test_what_is_struck_through_is_still_mentioned() -> None:
    assert "po:12345678" in mentioned("~~PO 12345678~~ PO 87654321")


def test_a_day_without_a_year_is_the_nearest_to_the_text() -> None:
    text = "pickup Dec 28, drivers march 3 miles, 4 may wait"
    assertions = extract(text, (), at=date(2026, 1, 3))
    assert [a.value for a in assertions if a.predicate == "date"] == ["2025-12-28"]
    assertions = extract(
        "Abholung am 28. Dez., entrega 2 de enero, 5 out of 6", (), at=date(2026, 1, 3)
    )
    assert [a.value for a in assertions if a.predicate == "date"] == ["2025-12-28", "2026-01-02"]


def test_each_passage_that_names_a_day_states_it() -> None:
    text = "due 3 May 2026. " * 8
    passages = [(16 * n, 16 * n + 15) for n in range(8)]
    starts = [a.start for a in extract(text, passages) if a.predicate == "date"]
    assert starts == [4 + 16 * n for n in range(5)]
    assert [a.start for a in extract(text, ()) if a.predicate == "date"] == [4]


def test_the_order_of_days_in_numbers_is_a_setting() -> None:
    assertions = extract("3/4/2026", (), date_order="day")
    assert [a.value for a in assertions if a.predicate == "date"] == ["2026-04-03"]


def test_roles_names_and_postal_codes_keep_their_place() -> None:
    text = "Shipper: Northwind Trucking, LLC\nShips from Columbus, OH 43215"
    result = extract(text, ())
    at = text.index("Northwind")
    assert Assertion(predicate="shipper", object="company:northwind-trucking", start=at) in result
    name = Assertion(
        predicate="name",
        subject="company:northwind-trucking",
        value="Northwind Trucking, LLC",
        start=at,
    )
    assert name in result
    postal = [a for a in result if a.predicate == "zip"]
    assert [(a.subject, a.value) for a in postal] == [("location:columbus-oh", "43215")]
    assert all(text[a.start :].startswith(a.value or "") for a in result if a.predicate == "name")


def test_an_entity_is_mentioned_once_a_passage_and_not_too_often() -> None:
    turn = "SHP-100045 and again SHP-100045\n"
    text = turn * 8
    size = len(turn)
    passages = [(n * size, (n + 1) * size) for n in range(8)]
    starts = [a.start for a in extract(text, passages) if a.predicate == "mentions"]
    assert starts == [n * size for n in range(MAX_MENTIONS)]
    assert len([a for a in extract(text, ()) if a.predicate == "mentions"]) == 1


def test_check_digits() -> None:
    assert container_digit("CSQU305438") == 3
    assert vin_digit("1M8GDM9AXKP042788") == "X"
    assert vin_digit("11111111111111111") == "1"


@pytest.mark.parametrize(
    ("given_ref", "ref"),
    [
        ("shipment:shp-100045", "shipment:SHP-100045"),
        ("company:Northwind Trucking, LLC", "company:northwind-trucking"),
        ("company:northwind-trucking-llc", "company:northwind-trucking"),
        ("company:Co", "company:co"),
        ("email:Dana@X.example", "email:dana@x.example"),
        ("phone:614-555-0123", "phone:+16145550123"),
        ("phone:+49 (0)30 123456", "phone:+4930123456"),
        ("vehicle:Truck 12", "vehicle:12"),
        ("vehicle:truck", "vehicle:TRUCK"),
        ("shipment:shp100045", "shipment:SHP-100045"),
        ("shipment:SHP 100045", "shipment:SHP-100045"),
        ("shipment:SHP\u2011100045", "shipment:SHP-100045"),
        ("load:LD55012", "load:LD-55012"),
        ("invoice:INV55048", "invoice:INV-55048"),
        ("invoice:INV 2026-0042", "invoice:INV-2026-0042"),
        ("invoice:INVENTORY-12", "invoice:INVENTORY-12"),
        ("po:PO-7781", "po:7781"),
        ("po:P.O. 7781", "po:7781"),
        ("po:POLAR-7", "po:POLAR-7"),
        ("bol:BOL-771-22A", "bol:771-22A"),
        ("pro:PRO 123-4567890", "pro:1234567890"),
        ("mc:MC-654321", "mc:654321"),
        ("usdot:USDOT 1234567", "usdot:1234567"),
        ("container:csqu 305438-3", "container:CSQU3054383"),
        ("account:aBcD", "account:aBcD"),
        ("cnv_1a", "cnv_1a"),
        ("", ""),
    ],
)
def test_a_ref_has_one_spelling_in_every_source(given_ref: str, ref: str) -> None:
    assert canonical(given_ref) == ref
    assert canonical(ref) == ref


@pytest.mark.parametrize(
    ("question", "certain", "candidate"),
    [
        ("where is shp-100045?", "shipment:SHP-100045", None),
        ("status of csqu3054383 please", "container:CSQU3054383", None),
        ("what did Northwind Trucking say", "company:northwind-trucking", "company:northwind"),
        ("anything from john smith today", None, "person:john-smith"),
        ("deliveries to columbus ohio", None, "location:columbus-oh"),
        ("what about 8812345", None, "bol:8812345"),
    ],
)
def test_questions(question: str, certain: str | None, candidate: str | None) -> None:
    result = extract_query(question)
    assert certain in {*result.certain, None}
    assert candidate in {*result.candidates, None}
    assert not set(result.certain) & set(result.candidates)


@given(st.text(max_size=600))
def test_questions_of_any_kind_stay_small(text: str) -> None:
    result = extract_query(text)
    assert len(result.candidates) <= MAX_CANDIDATES
    assert all(ref.partition(":")[2] for ref in (*result.certain, *result.candidates))


@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    for assertion in extract(text, ()):
        assert assertion.start is None or 0 <= assertion.start < len(text)


@pytest.mark.parametrize(
    "piece",
    ["a", "9", "Ab ", "a@", "a@b.", "$1,111", "Co ", "load # ", "A-1-", "+22 ", " ", "Shipper:\n", "City, ", "March 3 ", "(", "614-"],
)  # fmt: skip
def test_time_grows_with_length_alone(piece: str) -> None:
    """Four times the text takes about four times the time; quadratic rules would take sixteen."""

    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        start = time.process_time()
        extract(text, ())
        return time.process_time() - start

    short, long = min(seconds(25_000) for _ in range(2)), seconds(100_000)
    assert long < 10 * short + 0.05


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("at the gate: SHP\u2011100811", "shipment:SHP-100811"),  # no-break hyphen
        ("at the gate: SHP\u2010100811", "shipment:SHP-100811"),
        ("at the gate: SHP\u2013100813", "shipment:SHP-100813"),  # en dash
        ("at the gate: SHP-\u200b100812", "shipment:SHP-100812"),  # zero width
        ("at the gate: SHP-100\u00ad815", "shipment:SHP-100815"),  # soft hyphen
        ("at the gate: SHP\u00a0100814", "shipment:SHP-100814"),  # no-break blank
        ("ＳＨＰ－１００８１６", "shipment:SHP-100816"),
        ("MSKU\u2011123456\u20115", "container:MSKU1234565"),
        ("PRO\u202fNo.\u00a0123456789", "pro:123456789"),
        ("due 2026\u201103\u201104, INV\u20132026\u20130042", "invoice:INV-2026-0042"),
    ],
)
def test_f21_identifiers_are_recognised_in_any_typography(text: str, ref: str) -> None:
    [mention] = [a for a in extract(text, ()) if a.predicate == "mentions"]
    assert mention.object == ref
    assert mention.start is not None and text[mention.start].isalnum()
    assert ref in extract_query(text).certain


@given(
    st.lists(
        st.sampled_from(["SHP-100045", " ", "\u200b", "\u00ad", "\ufb03", "é", "a", "**", "½", "中", "\n"]),
        max_size=30,
    ).map("".join)
)  # fmt: skip
def test_f21_offsets_are_those_of_the_original(text: str) -> None:
    for assertion in extract(text, [(0, len(text))]):
        assert assertion.start is not None and 0 <= assertion.start < len(text)
        if assertion.object == "shipment:SHP-100045":
            assert text[assertion.start] == "S"


@pytest.mark.parametrize(
    ("text", "refs"),
    [
        ("**PRO:** 223456789", {"pro:223456789"}),
        ("**PRO**: 223456789, Load #: **778899**", {"pro:223456789", "load:778899"}),
        ("PO Number: __4500777__", {"po:4500777"}),
        ("SHP-**100045** and `SHP-100046` and SHP-**100**047", {"shipment:SHP-100045", "shipment:SHP-100046", "shipment:SHP-100047"}),
        ("PRO [223456789](https://carrier.example/t)", {"pro:223456789"}),
        ("| PRO | 323456789 |\n| --- | --- |\n| PO Number | 4500888 |\n| Load # | 778900 |",
         {"pro:323456789", "po:4500888", "load:778900"}),
        ("| PRO # | Purchase Order | Shipment ID |\n|:---|---|---:|\n| 323456789 | 4500999 | AX-2211 |\n| 323456790 | | |",
         {"pro:323456789", "pro:323456790", "po:4500999", "shipment:AX-2211"}),
        # Columns as wide as their longest cell, as the office reader writes them.
        ("| PRO       | 323456789 |\n| --------- | --------- |\n| PO Number | 4500888   |\n| Load #    | 778900    |",
         {"pro:323456789", "po:4500888", "load:778900"}),
        ("| Item | Weight |\n|---|---|\n| 323456789 | 4500999 |", set()),
        ("2 * 3 * 4 and snake_case_100045", set()),
    ],
)  # fmt: skip
def test_f19_identifiers_are_recognised_across_markup(text: str, refs: set[str]) -> None:
    assert mentioned(text) == refs
    for mention in extract(text, ()):
        assert mention.start is not None and text[mention.start].isalnum()


@pytest.mark.parametrize(
    ("query", "ref"),
    [
        ("where is shipment ABCXXXX?", "shipment:ABCXXXX"),
        ("load # 12", "load:12"),
        ("balance of account acc_1Xy", "account:acc_1Xy"),
        ("trailer TR5", "vehicle:TR5"),
    ],
)
def test_short_identifiers_are_possible_after_the_name_of_their_type(query: str, ref: str) -> None:
    entities = extract_query(query)
    assert ref in {*entities.identifiers, *entities.certain}
    assert not set(entities.identifiers) & set(entities.certain)


NAMES_APART = [
    ("Иван Петров", "Анна Смирнова"), ("山田運輸", "鈴木商店"), ("ООО Ромашка", "山田運輸"),
    ("北京 University", "上海 University"), ("Łódź Transport", "Odz Transport"), ("!!!", "???"), ("🚚", "🚢"),
    ("हिन्दी", "हन्द"), ("Café Nord", "Caf Nord"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), NAMES_APART)
def test_f2_different_names_have_different_keys(first: str, second: str) -> None:
    for kind in ("company", "person", "location"):
        assert canonical(f"{kind}:{first}") != canonical(f"{kind}:{second}")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Straße", "strasse"),
        ("STRASSE", "strasse"),
        ("Łódź Transport", "łódź-transport"),
        ("Cafe\u0301 Nord", "café-nord"),
        ("\uff21\uff23\uff2d\uff25 \uff26reight", "acme-freight"),
        ("Har\u00adbor\u200b Foods", "harbor-foods"),
        ("山田運輸", "山田運輸"),
    ],
)
def test_f2_a_key_folds_case_and_width_and_keeps_letters(name: str, key: str) -> None:
    assert canonical(f"company:{name}") == f"company:{key}"
    assert canonical(f"company:{key}") == f"company:{key}"


@given(st.text(min_size=1, max_size=40).filter(lambda name: name.strip()))
def test_f2_no_name_has_an_empty_key(name: str) -> None:
    key = canonical(f"person:{name}").partition(":")[2]
    assert key
    assert canonical(f"person:{key}") == f"person:{key}"


@pytest.mark.parametrize(
    ("text", "refs"),
    [
        ("INV55048, INV-55048", {"invoice:INV-55048"}),
        ("Invoice # 55048 is INV-55048", {"invoice:INV-55048"}),
        ("Load # 55012 is LD-55012", {"load:LD-55012"}),
        ("PO 4500-123, later PO 4500123", {"po:4500-123"}),
        ("BOL# 771-22A and BOL # 77122A", {"bol:771-22A"}),
        (
            "PO # 4500-12 and PO # 450-012 and PO # 450012",
            {"po:4500-12", "po:450-012", "po:450012"},
        ),
        ("PO 4500123 and BOL 4500-123", {"po:4500123", "bol:4500-123"}),
        ("PRO 123456789 / PRO 123-456789", {"pro:123456789"}),
    ],
)
def test_an_identifier_that_a_text_spells_twice_is_one_entity(text: str, refs: set[str]) -> None:
    assert mentioned(text) == refs
    assert mentioned(f"{text}\n\n{text}") == refs


def test_the_spelling_of_the_source_is_kept() -> None:
    def mentioned_beside(text: str, *own_refs: str) -> set[str]:
        extracted = extract(text, (), own_refs)
        return {a.object or "" for a in extracted if a.predicate == "mentions"}

    assert mentioned_beside("INV 55048, INV55048", "invoice:INV-55048") == {"invoice:INV-55048"}
    assert mentioned_beside("PO 4500-123", "po:4500123") == {"po:4500123"}
    both = ("po:4500123", "po:4500-123")
    assert mentioned_beside("PO 4500-123", *both) == {"po:4500-123"}, "the source has both"
    assert mentioned_beside("PO 450-0123", "po:4500-123") == {"po:450-0123"}, "another number"
    [name] = [a for a in extract("INV55048", (), ["invoice:INV-55048"]) if a.predicate == "name"]
    assert (name.subject, name.value) == ("invoice:INV-55048", "INV55048")


@given(
    st.sampled_from(["invoice:INV", "shipment:SHP", "load:LD", "po:PO", "bol:BOL"]),
    st.integers(1_000, 10**9),
    st.sampled_from(["", "-", " ", "\u2011"]),
)
def test_a_label_is_joined_to_its_number_in_one_way(label: str, number: int, joint: str) -> None:
    ref = canonical(f"{label}{joint}{number}")
    assert ref == canonical(f"{label.lower()}-{number}") == canonical(ref)


READER = QueryReader([{"shipment": "load"}, {"invoice": "billed"}])


@pytest.mark.parametrize(
    ("query", "ref"),
    [
        ("shipment 104277", "shipment:SHP-104277"),
        ("where is shipment no. 104277?", "shipment:SHP-104277"),
        ("load #104277", "shipment:SHP-104277"),
        ("load 104277", "load:LD-104277"),
        ("invoice 1042", "invoice:INV-1042"),
        ("billed 1042", "invoice:INV-1042"),
        ("shipment 7", "shipment:SHP-7"),
        ("load #42", "load:LD-42"),
        ("invoice 5", "invoice:5"),
        ("SHP-42", "shipment:SHP-42"),
        ("inv 7", "invoice:INV-7"),
    ],
)
def test_a_number_after_its_kind_may_be_an_identifier(query: str, ref: str) -> None:
    entities = READER(query)
    assert ref in (*entities.certain, *entities.identifiers)


@pytest.mark.parametrize(
    "query",
    [
        "overdue 30 days",
        "load 2 trucks",
        "invoice 500 dollars",
        "load 2 pallets",
        "invoice 1,250.00",
        "shipment at 10:30",
        "mail 12",
        "billed $500",
    ],
)
def test_other_numbers_after_a_kind_are_none(query: str) -> None:
    entities = READER(query)
    assert not entities.certain and not entities.identifiers


def test_a_kind_that_no_source_declares_is_not_read() -> None:
    assert "shipment:SHP-104277" not in extract_query("load 104277").identifiers

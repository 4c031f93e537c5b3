"""A small world of freight: documents, and questions with the documents that answer them.

Questions are of four kinds, as agents ask them: by `identifier`, by `words` of the text, by
`meaning` (no content word shared with the answer), and by `name` of who or where.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    key: str
    kind: str
    at: str
    title: str
    text: str
    entities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    text: str
    answer: str


DOCUMENTS = (
    Text(
        "mail-1",
        "email",
        "2025-10-02T14:00:00Z",
        "Late pickup",
        "Hi team, the driver for SHP-100045 got to the Columbus dock three hours after his appointment because of a blown tire on I-70. The receiver still expects the freight tomorrow morning.",
    ),
    Text(
        "mail-2",
        "email",
        "2025-10-03T09:30:00Z",
        "Re: Late pickup",
        "Thanks for the note. The consignee agreed to take SHP-100045 at 10:00 instead of 07:00, no penalty this time.",
    ),
    Text(
        "mail-3",
        "email",
        "2025-10-06T11:10:00Z",
        "Reefer alarm",
        "The trailer for LD-58123 reported 48 degrees while the order calls for 34. The berries inside may be spoiled. Please have the carrier check the cooling unit at once.",
    ),
    Text(
        "mail-4",
        "email",
        "2025-10-08T16:45:00Z",
        "Lumper receipt",
        "Attached is the receipt for the unloading crew at the Memphis cross-dock, 185 dollars, please add it to the settlement for LD-58140.",
    ),
    Text(
        "mail-5",
        "email",
        "2025-10-13T08:20:00Z",
        "New lane request",
        "Harbor Foods LLC wants a quote for weekly truckloads from Savannah, GA to Nashville, TN, two pallets of canned tuna short of a full trailer each time.",
    ),
    Text(
        "mail-6",
        "email",
        "2025-10-14T10:05:00Z",
        "Quote for weekly truckloads",
        "We can offer 2.35 per mile including fuel, valid through the end of the quarter, 48 hours of notice per pickup.",
    ),
    Text(
        "mail-7",
        "email",
        "2025-10-20T12:00:00Z",
        "Insurance certificate",
        "Your certificate of cargo coverage ends on Friday. Without a renewed one we must take you off the approved carrier list.",
    ),
    Text(
        "mail-8",
        "email",
        "2025-10-21T15:15:00Z",
        "Damaged pallets",
        "Two of the twelve pallets on BOL 7781234 came with crushed corners and torn wrap. The warehouse signed for them with an exception and took photographs.",
    ),
    Text(
        "mail-9",
        "email",
        "2025-10-27T13:40:00Z",
        "Driver praise",
        "Your man Earl Dutton was polite, on time and swept out the trailer without being asked. Please pass our thanks on to him.",
    ),
    Text(
        "mail-10",
        "email",
        "2025-11-03T07:55:00Z",
        "Snow",
        "Donner Pass is closed both ways after last night's storm. Everything bound for Reno sits in Sacramento until the plows are through.",
    ),
    Text(
        "mail-11",
        "email",
        "2025-11-04T09:00:00Z",
        "Customs hold",
        "Container MSKU1234565 was picked for an X-ray exam in Long Beach. The broker expects a release by Thursday, demurrage starts on Wednesday.",
    ),
    Text(
        "mail-12",
        "email",
        "2025-11-05T17:30:00Z",
        "Payment question",
        "Our bookkeeping shows INV-20418 as open for 61 days. When can we expect the money?",
    ),
    Text(
        "mail-13",
        "email",
        "2025-11-06T08:10:00Z",
        "Re: Payment question",
        "It was approved yesterday and goes out with Friday's bank run.",
    ),
    Text(
        "shipment-1",
        "shipment",
        "2025-10-01T12:00:00Z",
        "SHP-100045",
        "Shipment SHP-100045. Carrier: Northwind Trucking LLC. Origin Columbus, OH, destination Pittsburgh, PA. 22 pallets of bottled water, 41,000 lbs. Status: delivered.",
    ),
    Text(
        "shipment-2",
        "shipment",
        "2025-10-07T12:00:00Z",
        "SHP-100077",
        "Shipment SHP-100077. Carrier: Blue Mesa Freight. Origin Fresno, CA, destination Denver, CO. Temperature controlled, 34 F, strawberries. Status: claim filed.",
    ),
    Text(
        "shipment-3",
        "shipment",
        "2025-10-15T12:00:00Z",
        "SHP-100102",
        "Shipment SHP-100102. Carrier: Northwind Trucking LLC. Origin Toledo, OH, destination Louisville, KY. Automotive stampings in returnable racks. Status: in transit.",
    ),
    Text(
        "shipment-4",
        "shipment",
        "2025-11-02T12:00:00Z",
        "SHP-100131",
        "Shipment SHP-100131. Carrier: Piedmont Haulers Inc. Origin Charlotte, NC, destination Richmond, VA. Furniture, floor loaded, liftgate needed. Status: tendered.",
    ),
    Text(
        "policy-1",
        "document",
        "2025-01-10T00:00:00Z",
        "Detention policy",
        "Two hours at a dock are free. After that the customer owes 75 dollars for each hour started, if the driver checked in on time and the times are on the signed bill of lading.",
    ),
    Text(
        "policy-2",
        "document",
        "2025-01-10T00:00:00Z",
        "Carrier onboarding",
        "Before the first load we verify operating authority, a safety rating that is not unsatisfactory, cargo insurance of 100,000 dollars, and a W-9. New haulers ride on a probation of ten loads.",
    ),
    Text(
        "policy-3",
        "document",
        "2025-02-01T00:00:00Z",
        "Cargo claims",
        "A claim must reach us within nine months of delivery. We need the proof of delivery with the exception noted, photographs, the product invoice, and the salvage value.",
    ),
    Text(
        "policy-4",
        "document",
        "2025-02-01T00:00:00Z",
        "Cold chain rules",
        "Refrigerated equipment is pre-cooled before loading. The recorder is read at pickup and at delivery; a reading more than four degrees off for over thirty minutes is reported to the desk.",
    ),
    Text(
        "policy-5",
        "document",
        "2025-03-01T00:00:00Z",
        "Hazardous materials",
        "Placards go on all four sides. Drivers carry the endorsement and the emergency response sheet within reach. Lithium batteries ride alone.",
    ),
    Text(
        "policy-6",
        "document",
        "2025-03-01T00:00:00Z",
        "Fuel surcharge",
        "The surcharge follows the weekly national diesel average: one cent per mile for every six cents above 1.20 dollars a gallon.",
    ),
    Text(
        "policy-7",
        "document",
        "2025-04-01T00:00:00Z",
        "Hours of service",
        "A driver may be at the wheel for eleven hours after ten off duty, and not past the fourteenth hour since coming on duty. Dispatchers do not ask anybody to bend this.",
    ),
    Text(
        "chat-1",
        "conversation",
        "2025-10-16T10:00:00Z",
        "Capacity in Ohio",
        "User: Who has trucks free near Toledo on Friday? Assistant: Northwind Trucking LLC has two flatbeds and one van there, Dana Ortiz runs the desk.",
    ),
    Text(
        "chat-2",
        "conversation",
        "2025-10-22T10:00:00Z",
        "Rejected tenders",
        "User: Why do our tenders bounce? Assistant: Most refusals this month were on Mondays out of Atlanta, with less than a day of lead time.",
    ),
    Text(
        "chat-3",
        "conversation",
        "2025-10-30T10:00:00Z",
        "Weekend coverage",
        "User: Who answers the phones on Sunday? Assistant: Priya Raman has the duty this weekend, Tomas Lindqvist takes the next one.",
    ),
    Text(
        "chat-4",
        "conversation",
        "2025-11-05T10:00:00Z",
        "Scorecard",
        "User: How does Piedmont Haulers Inc compare? Assistant: On time in 97 of 100 pickups, two refusals, no damage. Best of the southeast group.",
    ),
    Text(
        "bank-1",
        "transaction",
        "2025-10-10T00:00:00Z",
        "Wire",
        "Outgoing wire 18,240.00 USD to Blue Mesa Freight, reference settlement week 40.",
    ),
    Text(
        "bank-2",
        "transaction",
        "2025-10-24T00:00:00Z",
        "ACH",
        "Incoming ACH 9,310.50 USD from Harbor Foods LLC, reference INV-20397.",
    ),
    Text(
        "bank-3",
        "transaction",
        "2025-11-01T00:00:00Z",
        "Card",
        "Card purchase 612.44 USD, Pilot Travel Center 318, Amarillo, TX, tractor 2207.",
    ),
    Text(
        "invoice-1",
        "invoice",
        "2025-09-05T00:00:00Z",
        "INV-20418",
        "Invoice INV-20418 to Kestrel Paper Company, 4,120.00 USD, line haul and two stops, net 30.",
    ),
    Text(
        "invoice-2",
        "invoice",
        "2025-09-24T00:00:00Z",
        "INV-20397",
        "Invoice INV-20397 to Harbor Foods LLC, 9,310.50 USD, five truckloads, net 30.",
    ),
    Text(
        "truck-1",
        "window",
        "2025-11-03T06:05:00Z",
        "Tractor 2207",
        "Tractor 2207: 62 mph average near Amarillo, TX, 71 % fuel, engine normal, two hard brakes.",
    ),
    Text(
        "truck-2",
        "window",
        "2025-11-03T06:10:00Z",
        "Tractor 2214",
        "Tractor 2214: parked in Sacramento, CA since 04:40, engine off, reefer running at 35 F.",
    ),
    Text(
        "truck-3",
        "window",
        "2025-11-04T11:00:00Z",
        "Tractor 2231",
        "Tractor 2231: coolant temperature high, fault code P0217, speed limited to 45 mph near Tulsa, OK.",
    ),
    Text(
        "market-1",
        "market",
        "2025-10-13T00:00:00Z",
        "Van rates",
        "Spot rates for dry vans rose 4 % week over week, Atlanta outbound tightest at 2.61 per mile, tender refusals at 7.9 %.",
    ),
    Text(
        "market-2",
        "market",
        "2025-11-03T00:00:00Z",
        "Diesel",
        "The national diesel average stands at 3.72 dollars a gallon, six cents above last week, highest on the west coast.",
    ),
    Text(
        "hubspot-1",
        "company",
        "2025-08-01T00:00:00Z",
        "Kestrel Paper Company",
        "Kestrel Paper Company, Green Bay, WI. Ships rolls of tissue, 30 loads a month, contract until June. Contact: Maren Holt.",
    ),
    Text(
        "hubspot-2",
        "company",
        "2025-08-01T00:00:00Z",
        "Harbor Foods LLC",
        "Harbor Foods LLC, Savannah, GA. Canned seafood importer, 12 loads a month, pays early. Contact: Luis Arroyo.",
    ),
)

QUESTIONS = (
    Question("identifier", "what is the carrier on SHP-100077?", "shipment-2"),
    Question("identifier", "anything wrong with load LD-58123?", "mail-3"),
    Question("identifier", "which papers belong to BOL 7781234", "mail-8"),
    Question("identifier", "MSKU1234565 status", "mail-11"),
    Question("identifier", "extras on the LD-58140 settlement", "mail-4"),
    Question("words", "detention free hours at a dock", "policy-1"),
    Question("words", "fault code P0217", "truck-3"),
    Question("words", "what does the lumper receipt amount to", "mail-4"),
    Question("words", "lithium batteries", "policy-5"),
    Question("words", "settlement week 40 wire", "bank-1"),
    Question("words", "spot rates Atlanta outbound", "market-1"),
    Question("words", "liftgate furniture", "shipment-4"),
    Question("words", "returnable racks of stampings", "shipment-3"),
    Question(
        "meaning", "which mountain road cannot be crossed because of winter weather?", "mail-10"
    ),
    Question("meaning", "how long can someone drive before they must rest?", "policy-7"),
    Question("meaning", "fruit got too warm on the way", "mail-3"),
    Question("meaning", "a client complimented one of our truckers", "mail-9"),
    Question("meaning", "deadline to seek compensation for broken goods", "policy-3"),
    Question("meaning", "requirements to hire an unknown trucking company", "policy-2"),
    Question(
        "meaning", "which supplier's proof of liability protection is about to expire", "mail-7"
    ),
    Question("meaning", "vehicle overheating", "truck-3"),
    Question("meaning", "who is working when the office is shut at the end of the week?", "chat-3"),
    Question("meaning", "price of gas for trucks at the moment", "market-2"),
    Question("meaning", "import box selected for government inspection", "mail-11"),
    Question("name", "how good is Piedmont Haulers?", "chat-4"),
    Question("name", "who works at Kestrel Paper Company?", "hubspot-1"),
    Question("name", "what did Harbor Foods pay us?", "bank-2"),
    Question("name", "lane Harbor Foods LLC is interested in", "mail-5"),
    Question("name", "Northwind Trucking equipment around Toledo", "chat-1"),
    Question("name", "money sent to Blue Mesa Freight", "bank-1"),
)

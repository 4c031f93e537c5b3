"""Writes the demo's folder of documents: `python -m examples.make_documents`. The files are committed; the names are invented."""

from __future__ import annotations

from pathlib import Path

from tests.documents import docx, mail, pdf, xlsx

FOLDER = Path(__file__).parent / "documents"

RATE_CONFIRMATION = """RATE CONFIRMATION
Load: SHP-100045      PO: 4500118842      PRO: 773100245
Broker: Acme Freight Brokerage LLC, MC 456789
Carrier: Northwind Trucking LLC, USDOT 2233445
Pick-up: Example Paper Co, 100 Example Way, Columbus, OH 43215
   2025-11-01 08:00-10:00, dock 4, 22 pallets of copy paper, 41,800 lb
Delivery: Peachtree Office Supply, 77 Harbor Street, Atlanta, GA 30303
   2025-11-02 15:00, appointment needed, call ahead +1 404 555 0142
Line haul $1,950.00, fuel surcharge $210.00, total $2,160.00
Free time is two hours; after that detention is paid at $55.00 an hour
with signed in and out times on the bill of lading.
"""

POD = """PROOF OF DELIVERY
Load SHP-100045, BOL 88120045
Received in good order: 22 pallets at Peachtree Office Supply, Atlanta, GA
Arrived 2025-11-02 14:20, unloaded 17:05, signed: R. Alvarez
Remark: driver waited 45 minutes beyond free time, one carton torn.
"""

HANDBOOK = [
    "# Carrier handbook",
    "Drivers of Northwind Trucking LLC and all other carriers send a message when they reach the shipper, when they leave, and at delivery.",
    "# Waiting time",
    "The first two hours at a dock are free. After that we pay for every quarter of an hour, if the gate times are on the paper and the request comes within three days.",
    "# Cold goods",
    "Reefer units are set before loading and the set point is noted. For Lakeshore Foods Inc the trailer stays between 34 and 38 degrees; a reading outside that range must be reported at once.",
    "# Missing paper",
    "No invoice is paid before the signed delivery receipt is in our inbox. A photo is enough if every corner of the page can be seen.",
]

LANES: list[list[str | float]] = [
    ["Lane", "Carrier", "Miles", "Rate USD", "Loads in October"],
    ["Columbus, OH to Atlanta, GA", "Northwind Trucking LLC", 568, 2160, 14],
    ["Chicago, IL to Dallas, TX", "Prairie Star Logistics", 967, 2875, 9],
    ["Memphis, TN to Newark, NJ", "Blue Ridge Carriers Inc", 1098, 3340, 6],
    ["Savannah, GA to Columbus, OH", "Northwind Trucking LLC", 722, 2490, 11],
]

ONBOARDING = """<!doctype html><html><head><title>New carrier: Blue Ridge Carriers Inc</title></head><body>
<h1>New carrier: Blue Ridge Carriers Inc</h1>
<p>MC 771204, USDOT 3098112. Cargo insurance of $250,000.00 runs until 2026-06-30.</p>
<p>Contact for dispatch: <a href="mailto:dispatch@blueridge.example">dispatch@blueridge.example</a>, +1 615 555 0176.</p>
<h2>Restrictions</h2><p>No hazardous materials, no loads to New York City boroughs. Teams are available on request for
runs above nine hundred miles.</p></body></html>
"""

NOTES = """# Dispatch notes, 2 November 2025

- SHP-100045: unit 204 left Columbus at 10:40, an hour late; the shipper had one door open. Peachtree was told.
- SHP-100052 for Lakeshore Foods Inc: reefer alarm near Knoxville, 41 degrees for twelve minutes, back at 36. Claims informed.
- Container MSCU6639870 is released at Savannah; drayage booked with Tidewater Transport for Tuesday morning.

## Open questions

Who approves the extra stop for SHP-100061? Waiting for Dana Whitfield at Example Paper Co.
"""


def main() -> None:
    """Write every file anew."""
    attachment = pdf(POD, title="Proof of delivery SHP-100045")
    files = {
        "rate-confirmation-SHP-100045.pdf": pdf(
            RATE_CONFIRMATION, title="Rate confirmation SHP-100045"
        ),
        "carrier-handbook.docx": docx(*HANDBOOK),
        "lane-rates.xlsx": xlsx(LANES, sheet="Lanes"),
        "new-carrier-blue-ridge.html": ONBOARDING.encode(),
        "dispatch-notes.md": NOTES.encode(),
        "delivery-receipt.eml": mail(
            subject="Signed receipt for SHP-100045",
            text="Hello,\n\nthe signed paper is attached. Please release invoice INV-20045 for payment.\n\nRosa Alvarez\nPeachtree Office Supply\n",
            sender="Rosa Alvarez <rosa@peachtree.example>",
            to="Billing <billing@acme.example>",
            date="Mon, 03 Nov 2025 09:15:00 -0500",
            attachments=[("pod-SHP-100045.pdf", "application/pdf", attachment)],
        ),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, body in files.items():
        (FOLDER / name).write_bytes(body)


if __name__ == "__main__":
    main()

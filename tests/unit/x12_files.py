"""X12 to test with: one file and one body of each set, and envelopes around them."""

from __future__ import annotations

STATUS_FILE = """\
ISA*00*          *00*          *02*NWTR           *ZZ*APEXSHIPPER    *251101*0830*U*00401*000004711*0*P*:~
GS*QM*NWTR*APEXSHIPPER*20251101*0830*4711*X*004010~
ST*214*0001~
B10*PRO778812*SHP-100045*NWTR~
L11*SHP-100045*BM~
L11*7781*PO~
N1*SH*EXAMPLE PAPER CO*93*DC01~
N3*100 EXAMPLE WAY~
N4*COLUMBUS*OH*43215*US~
N1*CN*SAMPLE RETAIL*93*ST22~
N3*9 PLACEHOLDER AVE~
N4*ATLANTA*GA*30303*US~
LX*1~
AT7*AF*NS***20251101*0815*ET~
MS1*COLUMBUS*OH*US~
MS2*NWTR*T-204~
AT8*G*L*18250*24~
SE*16*0001~
GE*1*4711~
IEA*1*000004711~
"""
INVOICE = "ST*210*0001~B3**INV-55012*SHP-100045*PP**20251103*124500**20251102*035*NWTR~C3*USD~N9*BM*SHP-100045~N1*BT*APEX SHIPPER LLC*93*APX~N1*SH*EXAMPLE PAPER CO~N1*CN*SAMPLE RETAIL~LX*1~L5*1*PAPER, NOIBN~L0*1***18250*G***24*PLT**L~L1*1*1100*FR*110000~LX*2~L5*2*FUEL SURCHARGE~L1*2*145*FR*14500****FUE~L3*18250*G***124500******24*L~SE*16*0001~"
TENDER = "ST*204*0001~B2**NWTR**SHP-100045**PP~B2A*00*LT~L11*SHP-100045*BM~G62*64*20251031*1*1700*ET~N1*BT*APEX SHIPPER LLC*93*APX~N7**TRL901*********TF****5300~S5*1*CL*18250*L*24*PL~L11*7781*PO~G62*10*20251101*Y*0800*ET~N1*SF*EXAMPLE PAPER CO*93*DC01~N4*COLUMBUS*OH*43215*US~S5*2*CU*18250*L*24*PL~G62*02*20251102*X*1500*ET~N1*ST*SAMPLE RETAIL*93*ST22~N4*ATLANTA*GA*30303*US~L3*18250*G***124500******24*L~SE*18*0001~"
RESPONSE = "ST*990*0001~B1*NWTR*SHP-100045*20251031*A~N9*CN*PRO778812~SE*4*0001~"
ACCEPTED = "ST*997*0001~AK1*QM*4711~AK2*214*0001~AK5*A~AK9*A*1*1*1~SE*6*0001~"
REJECTED = "ST*997*0002~AK1*IM*4712~AK2*210*0001~AK3*B3*2**8~AK4*7*193*6*1,245.00~AK5*R*5~AK9*R*1*1*0~SE*8*0002~"
STATUS = STATUS_FILE.replace("\n", "").split("004010~")[1].split("GE*")[0]


def group(function: str, number: int, *sets: str, sent: str = "20251101*0830") -> str:
    return (
        f"GS*{function}*NWTR*APEXSHIPPER*{sent}*{number}*X*004010~"
        f"{''.join(sets)}GE*{len(sets)}*{number}~"
    )


def interchange(
    number: int, *groups: str, sender: str = "NWTR", receiver: str = "APEXSHIPPER"
) -> str:
    return (
        f"ISA*00*          *00*          *02*{sender:<15}*ZZ*{receiver:<15}*251101*0830*U*00401*{number:09d}*0*P*:~"
        f"{''.join(groups)}IEA*{len(groups)}*{number:09d}~"
    )


def file(function: str, *sets: str, number: int = 4711, sent: str = "20251101*0830") -> str:
    """One interchange with one group."""
    return interchange(number, group(function, number, *sets, sent=sent))


def counted(body: str) -> str:
    """Return the body with the right number in SE01."""
    head, _, control = body.rstrip("~").rpartition("~SE*")
    count = head.count("~") + 2
    return f"{head}~SE*{count}*{control.partition('*')[2]}~"

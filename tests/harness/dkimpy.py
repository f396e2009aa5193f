"""dkimpy, asked by the tests: one thing a run, the message from standard input, the answer to standard output.

    sign   KEY SELECTOR DOMAIN HEADER/BODY ALGORITHM [FIELD ...]
                                                        the message with its signature before it
    seal   KEY SELECTOR DOMAIN HOST                     the message with an ARC set before it; needs HOST's results
    verify ZONE                                         pass or fail: the first signature
    arc    ZONE                                         pass, fail, none, or over for a chain that says fail itself
    public KEY                                          the record of an ed25519 key

KEY is a file, PEM or an ed25519 seed in base64; ZONE one with lines of `name TXT value`.
"""

import base64
import sys

import dkim
import nacl.signing


def read(path):
    with open(path, "rb") as file:
        return file.read()


def records(path):
    lines = (line.split(" ", 2) for line in read(path).decode().splitlines())
    zone = {name: value.encode() for name, kind, value in (line for line in lines if len(line) == 3) if kind == "TXT"}
    return lambda name, timeout=5: zone.get(name.decode().rstrip("."))


what, arguments = sys.argv[1], sys.argv[2:]
out = sys.stdout.buffer
if what == "public":
    seed = base64.b64decode(read(arguments[0]))
    public = nacl.signing.SigningKey(seed).verify_key.encode()
    out.write(b"v=DKIM1; k=ed25519; p=" + base64.b64encode(public))
    sys.exit()
message = sys.stdin.buffer.read()
if what == "sign":
    key, selector, domain, canonicalization, algorithm, *names = arguments
    field = dkim.sign(
        message,
        selector.encode(),
        domain.encode(),
        read(key),
        canonicalize=tuple(part.encode() for part in canonicalization.split("/")),
        signature_algorithm=algorithm.encode(),
        include_headers=[name.encode() for name in names] or None,
    )
    out.write(field + message)
elif what == "seal":
    key, selector, domain, host = arguments
    fields = dkim.arc_sign(message, selector.encode(), domain.encode(), read(key), host.encode())
    out.write(b"".join(fields) + message)
elif what == "verify":
    out.write(b"pass" if dkim.verify(message, dnsfunc=records(arguments[0])) else b"fail")
elif what == "arc":
    result, _, _ = dkim.arc_verify(message, dnsfunc=records(arguments[0]))
    out.write(result or b"over")
else:
    sys.exit(f"dkimpy.py: no such thing as {what}")

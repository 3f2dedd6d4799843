"""Captures an interface until its input ends; then writes, a line a packet: time in ns, bytes, TOS, source port, destination port, bytes of TCP data."""
import select
import socket
import struct
import sys

SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33

capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
capture.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
capture.bind((sys.argv[1], 0))
print("ready", flush=True)
lines = []
while True:
    readable, _, _ = select.select([capture, sys.stdin], [], [])
    if capture in readable:
        data, control, flags, _ = capture.recvmsg(65535, 256)
        second, nano = struct.unpack("qq", control[0][2][:16])
        tos = source = destination = payload = -1
        if data[12:14] == b"\x08\x00" and data[23] == 6:
            tos = data[15]
            total = struct.unpack("!H", data[16:18])[0]
            head = 14 + (data[14] & 15) * 4
            source, destination = struct.unpack("!HH", data[head : head + 4])
            payload = total - (head - 14) - (data[head + 12] >> 4) * 4
        lines.append(f"{second * 1_000_000_000 + nano} {len(data)} {tos} {source} {destination} {payload}")
    elif sys.stdin in readable:
        break
# struct tpacket_stats: packets, dropped
_, dropped = struct.unpack("II", capture.getsockopt(263, 6, 8))
print(f"dropped {dropped}")
print("\n".join(lines), flush=True)

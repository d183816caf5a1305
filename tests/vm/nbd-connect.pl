#!/usr/bin/perl
# A client that keeps a device of the kernel's connected: it haggles options, hands the socket to
# nbd.ko, and when the kernel reports that the connection is dead, it connects again and hands over
# the next. Requests wait meanwhile, for at most five minutes. Debian 12's nbd-client does not do
# this. Modules of perl are not needed, so this runs in an initial file system.
# usage: nbd-connect.pl DEVICE-NUMBER ADDRESS:PORT | DEVICE-NUMBER /SOCKET
use strict;
use warnings;

my ($index, $server) = @ARGV;
# No signal of systemd's for the process that serves the root file system:
# https://systemd.io/ROOT_STORAGE_DAEMONS
$0 = '@nbd-connect';
use constant PATIENCE => 300;
# After how many seconds a request that has no reply is looked after: the kernel sends one that was
# lost with its connection again only then. Its own choice is 30.
use constant TIMEOUT => 10;

# The connection: protocol of NBD, "Fixed newstyle negotiation".

sub take {
    my ($socket, $length) = @_;
    my $data = '';
    while (length($data) < $length) {
        my $got = sysread($socket, $data, $length - length($data), length($data));
        die "the server has gone\n" unless $got;
    }
    return $data;
}

sub connect_server {
    my $socket;
    if ($server =~ m{^/}) {
        socket($socket, 1, 1, 0) or die "socket: $!\n";
        connect($socket, pack('Sa108', 1, $server)) or die "connect: $!\n";
    } else {
        my ($address, $port) = split /:/, $server;
        socket($socket, 2, 1, 0) or die "socket: $!\n";
        connect($socket, pack('SnC4x8', 2, $port, split(/\./, $address))) or die "connect: $!\n";
    }
    my ($magic, $have_options) = unpack('a8a8', take($socket, 18));
    die "no NBD server\n" if $magic ne 'NBDMAGIC' || $have_options ne 'IHAVEOPT';
    # NBD_FLAG_C_FIXED_NEWSTYLE and NO_ZEROES; NBD_OPT_GO for the default export.
    syswrite($socket, pack('Na8NNNn', 3, 'IHAVEOPT', 7, 6, 0, 0));
    my ($size, $flags);
    while (1) {
        my (undef, undef, $type, $length) = unpack('a8NNN', take($socket, 20));
        my $data = take($socket, $length);
        if ($type == 1) {
            return ($socket, $size, $flags);
        } elsif ($type == 3 && unpack('n', $data) == 0) {
            (undef, $size, $flags) = unpack('nQ>n', $data);
        } elsif ($type != 3) {
            die "the server refuses: reply $type\n";
        }
    }
}

# Generic netlink: linux/genetlink.h and linux/nbd-netlink.h.

my $netlink;
socket($netlink, 16, 3, 16) or die "socket: $!\n";

sub attribute {
    my ($type, $value) = @_;
    my $length = 4 + length($value);
    return pack('SS', $length, $type) . $value . "\0" x (-$length & 3);
}

sub attributes {
    my ($data) = @_;
    my %found;
    while (length($data) >= 4) {
        my ($length, $type) = unpack('SS', $data);
        $found{$type & 0x3fff} = substr($data, 4, $length - 4);
        $data = length($data) > (($length + 3) & ~3) ? substr($data, ($length + 3) & ~3) : '';
    }
    return %found;
}

# Sends a command, and returns the attributes of the reply. Dies with the kernel's error.
sub ask {
    my ($family, $command, $data) = @_;
    my $message = pack('CCS', $command, 1, 0) . $data;
    # NLM_F_REQUEST, NLM_F_ACK
    send($netlink, pack('LSSLL', 16 + length($message), $family, 5, 1, 0) . $message, 0) or die "netlink: $!\n";
    my %reply;
    while (1) {
        my ($type, $data) = receive();
        if ($type == 2) {
            $! = -unpack('l', $data);
            die "netlink: $!\n" if $! + 0;
            return %reply;
        }
        %reply = attributes(substr($data, 4)) if $type == $family;
    }
}

my @pending;

sub receive {
    if (!@pending) {
        recv($netlink, my $packet, 65536, 0) // die "netlink: $!\n";
        while (length($packet) >= 16) {
            my ($length, $type) = unpack('LS', $packet);
            push @pending, [$type, substr($packet, 16, $length - 16)];
            $length = ($length + 3) & ~3;
            $packet = length($packet) > $length ? substr($packet, $length) : '';
        }
    }
    return @{ shift @pending };
}

# CTRL_CMD_GETFAMILY
my %family = ask(16, 3, attribute(2, "nbd\0"));
my $nbd = unpack('S', $family{1});
for my $group (values %{ { attributes($family{7}) } }) {
    my %group = attributes($group);
    setsockopt($netlink, 270, 1, unpack('L', $group{2})) or die "setsockopt: $!\n";
}

sub sockets {
    my ($socket) = @_;
    return attribute(7, attribute(1, attribute(1, pack('L', fileno($socket)))));
}

my ($socket, $size, $flags) = connect_server();
# NBD_CMD_CONNECT: index, size, block size, timeout of a request, flags, sockets, how long requests
# wait without a connection
ask($nbd, 1, attribute(1, pack('L', $index)) . attribute(2, pack('Q', $size)) . attribute(3, pack('Q', 4096))
    . attribute(4, pack('Q', TIMEOUT)) . attribute(5, pack('Q', $flags)) . sockets($socket) . attribute(8, pack('Q', PATIENCE)));
# The caller goes on when the device is there.
exit 0 if fork;
open(STDOUT, '>', '/dev/null');
open(STDERR, '>', '/dev/null');
while (1) {
    my ($type, $data) = receive();
    # NBD_CMD_LINK_DEAD of this device
    next unless $type == $nbd && unpack('C', $data) == 4;
    my %message = attributes(substr($data, 4));
    next unless unpack('L', $message{1}) == $index;
    close($socket);
    until (eval { ($socket) = connect_server(); 1 }) {
        select(undef, undef, undef, 0.2);
    }
    # NBD_CMD_RECONFIGURE; it fails when the device was disconnected on purpose.
    eval { ask($nbd, 3, attribute(1, pack('L', $index)) . sockets($socket)); 1 } or exit 0;
}

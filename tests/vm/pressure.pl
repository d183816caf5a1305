#!/usr/bin/perl
# Dirties MEBIBYTES of memory, page by page, ROUNDS times, and checks in each round what the one
# before has written.
# usage: pressure.pl MEBIBYTES ROUNDS
use strict;
use warnings;

my ($mebibytes, $rounds) = @ARGV;
my $pages = 256;
$| = 1;
my @blocks = map { "\0" x (1 << 20) } 1 .. $mebibytes;
my $stamp = sub { pack('L>4', @_, 0x6e626473, 0x77617021) };
for my $round (1 .. $rounds) {
    for my $block (0 .. $#blocks) {
        for my $page (0 .. $pages - 1) {
            my $at = $page * 4096;
            if ($round > 1 && substr($blocks[$block], $at, 16) ne $stamp->($block, $round - 1)) {
                die "block $block, page $page: not what round ", $round - 1, " has written\n";
            }
            substr($blocks[$block], $at, 16, $stamp->($block, $round));
        }
    }
    print "round $round\n";
}

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Replacement for the IORT of QEMU's virt machine, put in front of the initrd
 * (CONFIG_ACPI_TABLE_UPGRADE). As QEMU's own, except for:
 *  - OEM Revision, which must be above the original's (1) to replace it;
 *  - Memory Flags of the root complex: bit 2, "ensured coherency of accesses"
 *    (CANWBS), which QEMU keeps in fact, and without which the SMMUv3 driver
 *    offers no vIOMMU;
 *  - the second ID mapping, so that devices behind a root port are behind the
 *    SMMU too; QEMU sends all buses but the first past it.
 */
[0004]                          Signature : "IORT"    [IO Remapping Table]
[0004]                       Table Length : 00000000
[0001]                           Revision : 03
[0001]                           Checksum : 00
[0006]                             Oem ID : "BOCHS "
[0008]                       Oem Table ID : "BXPC    "
[0004]                       Oem Revision : 00000002
[0004]                    Asl Compiler ID : "BXPC"
[0004]              Asl Compiler Revision : 00000001

[0004]                         Node Count : 00000003
[0004]                        Node Offset : 00000030
[0004]                           Reserved : 00000000

/* The ITS, at offset 30. */
[0001]                               Type : 00
[0002]                             Length : 0018
[0001]                           Revision : 01
[0004]                         Identifier : 00000000
[0004]                      Mapping Count : 00000000
[0004]                     Mapping Offset : 00000000
[0004]                           ItsCount : 00000001
[0004]                        Identifiers : 00000000

/* The SMMUv3, at offset 48. */
[0001]                               Type : 04
[0002]                             Length : 0058
[0001]                           Revision : 04
[0004]                         Identifier : 00000001
[0004]                      Mapping Count : 00000001
[0004]                     Mapping Offset : 00000044
[0008]                       Base Address : 0000000009050000
[0004]              Flags (decoded below) : 00000001
                          COHACC Override : 1
                            HTTU Override : 0
                   Proximity Domain Valid : 0
                           DeviceID Valid : 0
[0004]                           Reserved : 00000000
[0008]                      VATOS Address : 0000000000000000
[0004]                              Model : 00000000
[0004]                         Event GSIV : 0000006A
[0004]                           PRI GSIV : 0000006B
[0004]                          GERR GSIV : 0000006D
[0004]                          Sync GSIV : 0000006C
[0004]                   Proximity Domain : 00000000
[0004]            Device ID Mapping Index : 00000000
[0004]                         Input base : 00000000
[0004]                           ID Count : 0000FFFF
[0004]                        Output Base : 00000000
[0004]                   Output Reference : 00000030
[0004]              Flags (decoded below) : 00000000
                           Single Mapping : 0

/* The PCI root complex. */
[0001]                               Type : 02
[0002]                             Length : 004C
[0001]                           Revision : 03
[0004]                         Identifier : 00000002
[0004]                      Mapping Count : 00000002
[0004]                     Mapping Offset : 00000024
[0008]                  Memory Properties : [IORT Memory Access Properties]
[0004]                    Cache Coherency : 00000001
[0001]              Hints (decoded below) : 00
                                Transient : 0
                           Write Allocate : 0
                            Read Allocate : 0
                                 Override : 0
[0002]                           Reserved : 0000
[0001]       Memory Flags (decoded below) : 07
                                Coherency : 1
                         Device Attribute : 1
            Ensured Coherency of Accesses : 1
[0004]                      ATS Attribute : 00000001
[0004]                 PCI Segment Number : 00000000
[0001]                  Memory Size Limit : 40
[0002]                 PASID Capabilities : 0000
[0001]                           Reserved : 00
[0004]                         Input base : 00000000
[0004]                           ID Count : 000000FF
[0004]                        Output Base : 00000000
[0004]                   Output Reference : 00000048
[0004]              Flags (decoded below) : 00000000
                           Single Mapping : 0
[0004]                         Input base : 00000100
[0004]                           ID Count : 0000FEFF
[0004]                        Output Base : 00000100
[0004]                   Output Reference : 00000048
[0004]              Flags (decoded below) : 00000000
                           Single Mapping : 0

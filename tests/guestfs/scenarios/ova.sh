# virt-v2v reads an appliance, and edits a disk where it is.
# shellcheck shell=sh

v2v() {
    with "$ours" "$@"
}

mkdir preallocated
# An appliance as VMware exports it: a tar of a description and a compressed disk.
cat > guest.ovf <<end
<?xml version='1.0'?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:href="disk1.vmdk" ovf:id="file1"/></References>
 <DiskSection><Info>Disks</Info>
  <Disk ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1"
   ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
 </DiskSection>
 <VirtualSystem ovf:id="guest"><Name>guest</Name>
  <VirtualHardwareSection><Info>Hardware</Info>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
   <Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
   <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
    <rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>
end
qemu-img convert -q -O vmdk -o subformat=streamOptimized /srv/guest.img disk1.vmdk
tar -cf guest.ova guest.ovf disk1.vmdk
check "virt-v2v -i ova, -oa preallocated" v2v virt-v2v -i ova guest.ova -o local -os "$PWD/preallocated" -of raw -oa preallocated
check "the image has all of its blocks" [ "$(($(stat -c '%b' preallocated/guest-sda) * 512))" -ge 1073741824 ]

cp --sparse=always /srv/guest.img in-place.img
check "virt-v2v-in-place" v2v virt-v2v-in-place -i disk in-place.img
check "has changed the disk itself" sh -c "! cmp -s in-place.img /srv/guest.img"
